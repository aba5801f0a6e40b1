//! A small linear program and the one place that calls a solver.
//!
//! `minimise cost·x` subject to rows `coefficients·x ≤ limit` and `0 ≤ x ≤ upper`. The rows are ours,
//! so the bound that a plan reports is of a model that can be read here, not of a solver's.

use good_lp::{
    variable, Expression, ProblemVariables, ResolutionError, Solution, SolverModel, Variable,
};

/// A column of a [`Lp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column(usize);

/// `minimise cost·x, rows·x ≤ limits, 0 ≤ x ≤ upper`.
#[derive(Clone, Debug, Default)]
pub struct Lp {
    costs: Vec<f64>,
    uppers: Vec<f64>,
    rows: Vec<(Vec<(Column, f64)>, f64)>,
    equalities: Vec<(Vec<(Column, f64)>, f64)>,
}

/// What the solver found.
#[derive(Clone, Debug)]
pub struct Optimum {
    /// The objective.
    pub objective: f64,
    values: Vec<f64>,
}

/// Why there is no optimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsolved {
    /// No point satisfies the rows.
    Infeasible,
    /// The solver gave up, on a singular matrix for example: nothing is known.
    Failed,
}

impl Optimum {
    /// The value of a column, inside its bounds.
    pub fn value(&self, column: Column) -> f64 {
        self.values[column.0]
    }
}

impl Lp {
    /// A column with its cost and upper bound.
    pub fn column(&mut self, cost: f64, upper: f64) -> Column {
        self.costs.push(cost);
        self.uppers.push(upper);
        Column(self.costs.len() - 1)
    }
    /// The row `coefficients·x ≤ limit`.
    pub fn at_most(&mut self, coefficients: Vec<(Column, f64)>, limit: f64) {
        self.rows.push((coefficients, limit));
    }
    /// The row `coefficients·x = value`.
    pub fn equal(&mut self, coefficients: Vec<(Column, f64)>, value: f64) {
        self.equalities.push((coefficients, value));
    }
    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        (self.costs.len(), self.rows.len() + self.equalities.len())
    }

    /// Solves it.
    ///
    /// # Errors
    /// When no point satisfies the rows, or the solver's arithmetic fails.
    pub fn minimise(&self) -> Result<Optimum, Unsolved> {
        let mut variables = ProblemVariables::new();
        let columns: Vec<Variable> = self
            .uppers
            .iter()
            .map(|&upper| {
                let column = variable().min(0.0);
                variables.add(if upper.is_finite() {
                    column.max(upper)
                } else {
                    column
                })
            })
            .collect();
        let sum = |terms: &[(Column, f64)]| -> Expression {
            let mut expression = Expression::with_capacity(terms.len());
            for &(column, factor) in terms {
                expression.add_mul(factor, columns[column.0]);
            }
            expression
        };
        let mut objective = Expression::with_capacity(columns.len());
        for (column, &cost) in columns.iter().zip(&self.costs) {
            if cost != 0.0 {
                objective.add_mul(cost, *column);
            }
        }
        #[cfg(feature = "highs")]
        let mut model = variables.minimise(objective).using(good_lp::highs);
        #[cfg(not(feature = "highs"))]
        let mut model = variables.minimise(objective).using(good_lp::microlp);
        for (row, limit) in &self.rows {
            model = model.with(sum(row).leq(*limit));
        }
        for (row, value) in &self.equalities {
            model = model.with(sum(row).eq(*value));
        }
        let solution = model.solve().map_err(|error| match error {
            ResolutionError::Infeasible => Unsolved::Infeasible,
            _ => Unsolved::Failed,
        })?;
        let values: Vec<f64> = columns
            .iter()
            .zip(&self.uppers)
            .map(|(column, &upper)| solution.value(*column).clamp(0.0, upper))
            .collect();
        let objective = values.iter().zip(&self.costs).map(|(x, c)| x * c).sum();
        Ok(Optimum { objective, values })
    }
}

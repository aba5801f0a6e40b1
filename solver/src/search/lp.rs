//! A small linear program and the one place that calls a solver.
//!
//! `minimise cost·x` subject to rows `coefficients·x ≤ limit` and `0 ≤ x ≤ upper`. The rows are
//! ours,
//! so the bound that a plan reports is of a model that can be read here, not of a solver's.

#[cfg(feature = "highs")]
use good_lp::highs as backend;
#[cfg(not(feature = "highs"))]
use good_lp::microlp as backend;
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
    /// The same program with its rows in another order, which the solver goes through differently.
    pub fn turn_rows(&mut self) {
        let third = self.rows.len() / 3;
        self.rows.rotate_left(third);
        self.rows.reverse();
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
        let mut model = variables.minimise(objective).using(backend);
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

    /// A value that no point of the program is below, whatever the solver's arithmetic did: weak
    /// duality. For any `y ≥ 0` and `z`, with reduced costs `r = cost + rowsᵀy − equalitiesᵀz`,
    /// every
    /// point costs at least `−limits·y + values·z + Σ min(0, r)·upper`. The solver only proposes
    /// `y` and `z` (as the optimum of the dual program); the sum is taken here.
    ///
    /// Columns without an upper bound are taken to be at most `cap`.
    ///
    /// With a point and a tolerance only rows that are that tight there get a multiplier, as
    /// complementary slackness has it at an optimum: a smaller program, and one that the solver
    /// seldom fails at.
    pub fn lower_bound(&self, cap: f64, tight_at: Option<(&Optimum, f64)>) -> Option<f64> {
        let mut variables = ProblemVariables::new();
        let mut nonnegative = |count: usize| -> Vec<Variable> {
            (0..count)
                .map(|_| variables.add(variable().min(0.0)))
                .collect()
        };
        let tight: Vec<usize> = (0..self.rows.len())
            .filter(|&row| tight_at.is_none_or(|(point, within)| self.slack(row, point) < within))
            .collect();
        let y = nonnegative(tight.len());
        let (up, down) = (
            nonnegative(self.equalities.len()),
            nonnegative(self.equalities.len()),
        );
        let slack = nonnegative(self.costs.len());
        let mut objective = Expression::with_capacity(y.len() + 2 * up.len() + slack.len());
        // By column: the terms of its reduced cost.
        let mut reduced: Vec<Expression> =
            self.costs.iter().map(|&c| Expression::from(c)).collect();
        for (&row, &y) in tight.iter().zip(&y) {
            let (row, limit) = &self.rows[row];
            objective.add_mul(*limit, y);
            row.iter()
                .for_each(|&(column, factor)| reduced[column.0].add_mul(factor, y));
        }
        for (((row, value), &up), &down) in self.equalities.iter().zip(&up).zip(&down) {
            objective.add_mul(-*value, up);
            objective.add_mul(*value, down);
            for &(column, factor) in row {
                reduced[column.0].add_mul(-factor, up);
                reduced[column.0].add_mul(factor, down);
            }
        }
        for (&upper, &slack) in self.uppers.iter().zip(&slack) {
            objective.add_mul(upper.min(cap), slack);
        }
        let mut model = variables.minimise(objective).using(backend);
        for (reduced, &slack) in reduced.iter().zip(&slack) {
            model = model.with((reduced.clone() + slack).geq(0.0));
        }
        let solution = model.solve().ok()?;
        let mut multipliers = vec![0.0; self.rows.len()];
        for (row, y) in tight.into_iter().zip(y) {
            multipliers[row] = solution.value(y).max(0.0);
        }
        let z = up
            .iter()
            .zip(&down)
            .map(|(&u, &d)| solution.value(u) - solution.value(d));
        Some(self.weak_duality(&multipliers, &z.collect::<Vec<f64>>(), cap))
    }

    /// How far a point is from the limit of a row, in parts of what its terms sum to.
    fn slack(&self, row: usize, point: &Optimum) -> f64 {
        let (terms, limit) = &self.rows[row];
        let parts = terms.iter().map(|&(c, factor)| factor * point.values[c.0]);
        let (sum, size) = parts.fold((0.0, limit.abs() + 1.0), |(sum, size): (f64, f64), part| {
            (sum + part, size + part.abs())
        });
        (limit - sum) / size
    }

    fn weak_duality(&self, y: &[f64], z: &[f64], cap: f64) -> f64 {
        let mut reduced = self.costs.clone();
        let mut bound = 0.0;
        for ((row, limit), y) in self.rows.iter().zip(y) {
            bound -= limit * y;
            row.iter()
                .for_each(|&(column, factor)| reduced[column.0] += factor * y);
        }
        for ((row, value), z) in self.equalities.iter().zip(z) {
            bound += value * z;
            row.iter()
                .for_each(|&(column, factor)| reduced[column.0] -= factor * z);
        }
        let below = reduced.iter().zip(&self.uppers);
        bound
            + below
                .map(|(r, upper)| r.min(0.0) * upper.min(cap))
                .sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// minimise −x − 2y, x + y ≤ 4, y = 3: the optimum is x = 1, y = 3.
    #[test]
    fn the_bound_meets_the_optimum_and_is_never_above_it() {
        let mut lp = Lp::default();
        let (x, y) = (lp.column(-1.0, f64::INFINITY), lp.column(-2.0, 10.0));
        lp.at_most(vec![(x, 1.0), (y, 1.0)], 4.0);
        lp.equal(vec![(y, 1.0)], 3.0);
        let optimum = lp.minimise().unwrap();
        assert!((optimum.objective + 7.0).abs() < 1e-9);
        assert!((optimum.value(x) - 1.0).abs() < 1e-9);
        assert!((lp.lower_bound(100.0, None).unwrap() + 7.0).abs() < 1e-6);
        // Any multipliers give a bound, good ones a good one.
        assert!(lp.weak_duality(&[0.5], &[0.0], 100.0) <= -7.0);
    }
}

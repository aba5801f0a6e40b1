//! A small linear program and the one place that calls a solver.
//!
//! `minimise cost·x` subject to rows `coefficients·x ≤ limit` and `0 ≤ x ≤ upper`. The rows are
//! ours, so the bound that a plan reports is of a model that can be read here, not of a solver's.

use clarabel::algebra::CscMatrix;
use clarabel::solver::{
    DefaultSettings, DefaultSolution, DefaultSolver, IPSolver, SolverStatus, SupportedConeT,
};
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
    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        (self.costs.len(), self.rows.len() + self.equalities.len())
    }

    /// Solves it: a vertex, or where the simplex method gives up, a point near the optimum.
    ///
    /// # Errors
    /// When no point satisfies the rows, or no solver's arithmetic gets anywhere.
    pub fn minimise(&self) -> Result<Optimum, Unsolved> {
        if let Ok(optimum) = self.vertex() {
            return Ok(optimum);
        }
        // Infeasible to the simplex method can mean a singular matrix: the other one decides.
        let solution = self.interior();
        match solution.status {
            SolverStatus::Solved | SolverStatus::AlmostSolved => Ok(self.optimum(&solution.x)),
            SolverStatus::PrimalInfeasible => Err(Unsolved::Infeasible),
            _ => Err(Unsolved::Failed),
        }
    }

    fn optimum(&self, values: &[f64]) -> Optimum {
        let inside = |(&x, &upper): (&f64, &f64)| x.clamp(0.0, upper);
        let values: Vec<f64> = values.iter().zip(&self.uppers).map(inside).collect();
        let objective = values.iter().zip(&self.costs).map(|(x, c)| x * c).sum();
        Optimum { objective, values }
    }

    fn vertex(&self) -> Result<Optimum, ResolutionError> {
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
        let solution = model.solve()?;
        let values: Vec<f64> = columns.iter().map(|&c| solution.value(c)).collect();
        Ok(self.optimum(&values))
    }

    /// A value that no point of the program is below, whatever the solver's arithmetic did: weak
    /// duality. For any `y ≥ 0` and `z`, with reduced costs `r = cost + rowsᵀy − equalitiesᵀz`,
    /// every point costs at least `−limits·y + values·z + Σ min(0, r)·upper`. The solver, an
    /// interior point method since those find the duals of degenerate programs too, only proposes
    /// `y` and `z`; the sum is taken here.
    ///
    /// Columns without an upper bound are taken to be at most twice the optimum: what is proved is
    /// that no point is better where a larger column is no better itself, as one that costs.
    ///
    /// # Errors
    /// When the solver says that there is no point, which is nothing proved.
    pub fn lower_bound(&self) -> Result<f64, Unsolved> {
        let solution = self.interior();
        if solution.status == SolverStatus::PrimalInfeasible {
            return Err(Unsolved::Infeasible);
        }
        let (optimum, y, z) = self.multipliers(&solution);
        let cap = 2.0 * optimum.max(0.0);
        Ok(self.weak_duality(&y, &z, cap).min(cap))
    }

    /// The optimum and the multipliers of the rows and of the equalities there, nearly.
    fn multipliers(&self, solution: &DefaultSolution<f64>) -> (f64, Vec<f64>, Vec<f64>) {
        // Where it fails, no multipliers: still a bound, if a poor one.
        let finite = |d: &f64| if d.is_finite() { *d } else { 0.0 };
        let (equal, rest) = solution.z.split_at(self.equalities.len());
        let y = rest.iter().take(self.rows.len());
        (
            finite(&solution.obj_val_dual),
            y.map(|y| finite(y).max(0.0)).collect(),
            equal.iter().map(|z| -finite(z)).collect(),
        )
    }

    /// What the interior point method makes of it: `z` has the equalities, the rows, the bounds.
    fn interior(&self) -> DefaultSolution<f64> {
        // minimise cost·x, A x + s = b: s = 0 for equalities, s ≥ 0 for rows and bounds.
        let columns = self.costs.len();
        let rows = self.equalities.iter().chain(&self.rows);
        let (mut at, mut of, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        let mut limits = Vec::new();
        for (terms, limit) in rows {
            for &(column, factor) in terms {
                at.push(limits.len());
                of.push(column.0);
                factors.push(factor);
            }
            limits.push(*limit);
        }
        let uppers = self
            .uppers
            .iter()
            .enumerate()
            .filter(|(_, u)| u.is_finite());
        let uppers = uppers.map(|(column, &upper)| (column, 1.0, upper));
        for (column, sign, limit) in (0..columns).map(|c| (c, -1.0, 0.0)).chain(uppers) {
            at.push(limits.len());
            of.push(column);
            factors.push(sign);
            limits.push(limit);
        }
        let a = CscMatrix::new_from_triplets(limits.len(), columns, at, of, factors);
        let cones = [
            SupportedConeT::ZeroConeT(self.equalities.len()),
            SupportedConeT::NonnegativeConeT(limits.len() - self.equalities.len()),
        ];
        let settings = DefaultSettings {
            verbose: false,
            ..DefaultSettings::default()
        };
        let quadratic = CscMatrix::zeros((columns, columns));
        let mut solver = DefaultSolver::new(&quadratic, &self.costs, &a, &limits, &cones, settings);
        solver.solve();
        solver.solution
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

    /// minimise x + 2y, x + y ≥ 4, y = 1: the optimum is x = 3, y = 1.
    #[test]
    fn the_bound_meets_the_optimum_and_is_never_above_it() {
        let mut lp = Lp::default();
        let (x, y) = (lp.column(1.0, f64::INFINITY), lp.column(2.0, 10.0));
        lp.at_most(vec![(x, -1.0), (y, -1.0)], -4.0);
        lp.equal(vec![(y, 1.0)], 1.0);
        let optimum = lp.minimise().unwrap();
        assert!((optimum.objective - 5.0).abs() < 1e-9);
        assert!((optimum.value(x) - 3.0).abs() < 1e-9);
        assert!((lp.lower_bound().unwrap() - 5.0).abs() < 1e-6);
        // Any multipliers give a bound, good ones a good one.
        assert!(lp.weak_duality(&[0.5], &[0.0], 10.0) <= 5.0);
        assert!(lp.weak_duality(&[2.0], &[0.0], 10.0) <= 5.0);
    }
}

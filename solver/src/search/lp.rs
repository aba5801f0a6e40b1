//! A small linear program and the one place that calls a solver.
//!
//! `minimise cost·x` subject to rows `coefficients·x ≤ limit` and `0 ≤ x ≤ upper`. The rows are
//! ours, so the bound that a plan reports is of a model that can be read here, not of a solver's.

use std::collections::BTreeMap;

use clarabel::algebra::CscMatrix;
use clarabel::solver::{
    DefaultSettings, DefaultSolution, DefaultSolver, IPSolver, SolverStatus, SupportedConeT,
};
use good_lp::{microlp, variable, Expression, ProblemVariables, Solution, SolverModel, Variable};

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
    /// No point costs less: proved by weak duality.
    pub bound: f64,
    values: Vec<f64>,
}

/// What the interior point method makes of it.
struct Interior {
    status: SolverStatus,
    objective: f64,
    x: Vec<f64>,
    /// Multipliers of the rows.
    rows: Vec<f64>,
    /// And of the equalities.
    equalities: Vec<f64>,
}

/// `A` and `b` of `A x ≤ b`, row by row.
#[derive(Default)]
struct Triplets {
    rows: Vec<usize>,
    columns: Vec<usize>,
    factors: Vec<f64>,
    limits: Vec<f64>,
}

impl Triplets {
    fn row(&mut self, terms: impl IntoIterator<Item = (usize, f64)>, limit: f64) {
        for (column, factor) in terms {
            self.rows.push(self.limits.len());
            self.columns.push(column);
            self.factors.push(factor);
        }
        self.limits.push(limit);
    }
}

fn indexed(terms: &[(Column, f64)]) -> impl Iterator<Item = (usize, f64)> + '_ {
    terms.iter().map(|&(column, factor)| (column.0, factor))
}

/// Rows with at least so many terms are long.
const LONG: usize = 12;

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

    /// Solves it, by an interior point method: a point near the optimum and, whatever the solver's
    /// arithmetic did, a value that no point is below.
    ///
    /// # Errors
    /// When no point satisfies the rows, or no solver's arithmetic gets anywhere.
    pub fn minimise(&self) -> Result<Optimum, Unsolved> {
        let solution = self.interior();
        let values = match solution.status {
            SolverStatus::Solved | SolverStatus::AlmostSolved => solution.x,
            // That there is no point is believed where the simplex method says so, too.
            SolverStatus::PrimalInfeasible => self.vertex().ok_or(Unsolved::Infeasible)?,
            _ => self.vertex().ok_or(Unsolved::Failed)?,
        };
        let inside = |(&x, &upper): (&f64, &f64)| x.clamp(0.0, upper);
        let cap = 2.0 * solution.objective.max(0.0);
        let bound = self.weak_duality(&solution.rows, &solution.equalities, cap);
        Ok(Optimum {
            bound: bound.min(cap),
            values: values.iter().zip(&self.uppers).map(inside).collect(),
        })
    }

    /// An optimal vertex by the simplex method, if it finds one.
    fn vertex(&self) -> Option<Vec<f64>> {
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
        let mut model = variables.minimise(objective).using(microlp);
        for (row, limit) in &self.rows {
            model = model.with(sum(row).leq(*limit));
        }
        for (row, value) in &self.equalities {
            model = model.with(sum(row).eq(*value));
        }
        let solution = model.solve().ok()?;
        Some(columns.iter().map(|&c| solution.value(c)).collect())
    }

    fn interior(&self) -> Interior {
        // minimise cost·x, A x + s = b: s = 0 for equalities, s ≥ 0 for rows and bounds.
        let columns = self.costs.len();
        let (sums, definitions) = self.sums();
        let equalities = self.equalities.len() + definitions.len();
        let mut a = Triplets::default();
        for (terms, value) in &self.equalities {
            a.row(indexed(terms), *value);
        }
        for definition in definitions {
            a.row(definition, 0.0);
        }
        for ((terms, limit), sum) in self.rows.iter().zip(&sums) {
            match sum {
                Some(sum) => a.row([(*sum, 1.0)], *limit),
                None => a.row(indexed(terms), *limit),
            }
        }
        for column in 0..columns {
            a.row([(column, -1.0)], 0.0);
        }
        let uppers = self.uppers.iter().enumerate();
        for (column, &upper) in uppers.filter(|(_, upper)| upper.is_finite()) {
            a.row([(column, 1.0)], upper);
        }
        let cones = [
            SupportedConeT::ZeroConeT(equalities),
            SupportedConeT::NonnegativeConeT(a.limits.len() - equalities),
        ];
        let settings = DefaultSettings {
            verbose: false,
            ..DefaultSettings::default()
        };
        let all = columns + sums.iter().flatten().count();
        let mut costs = self.costs.clone();
        costs.resize(all, 0.0);
        let quadratic = CscMatrix::zeros((all, all));
        let matrix =
            CscMatrix::new_from_triplets(a.limits.len(), all, a.rows, a.columns, a.factors);
        let mut solver =
            DefaultSolver::new(&quadratic, &costs, &matrix, &a.limits, &cones, settings);
        solver.solve();
        let DefaultSolution {
            status,
            x,
            z,
            obj_val_dual,
            ..
        } = solver.solution;
        // Where it fails, no multipliers: still a bound, if a poor one.
        let finite = |d: &f64| if d.is_finite() { *d } else { 0.0 };
        let rows = z[equalities..].iter().take(self.rows.len());
        Interior {
            status,
            objective: finite(&obj_val_dual),
            rows: rows.map(|y| finite(y).max(0.0)).collect(),
            equalities: z
                .iter()
                .take(self.equalities.len())
                .map(|z| -finite(z))
                .collect(),
            x,
        }
    }

    /// Long rows that follow one another are often alike, as are those of memory at one moment and
    /// the next, and factors of matrices with such rows are dense. So the sum of a long row becomes
    /// a column of its own, behind all others, defined by what it has more than the sum before.
    /// For every row its sum's column, if it has one; and the definitions, each to be 0.
    fn sums(&self) -> (Vec<Option<usize>>, Vec<BTreeMap<usize, f64>>) {
        let mut definitions: Vec<BTreeMap<usize, f64>> = Vec::new();
        let mut before: BTreeMap<usize, f64> = BTreeMap::new();
        let sum = |(terms, _): &(Vec<(Column, f64)>, f64)| {
            let mut whole = BTreeMap::new();
            for (column, factor) in indexed(terms) {
                *whole.entry(column).or_default() += factor;
            }
            let mut more = whole.clone();
            for (&column, factor) in &before {
                *more.entry(column).or_default() -= factor;
            }
            more.retain(|_, factor| *factor != 0.0);
            let column = self.costs.len() + definitions.len();
            let alike = 2 * more.len() < whole.len();
            if alike {
                more.insert(column - 1, 1.0);
            } else if whole.len() > LONG.max(before.len()) {
                more.clone_from(&whole);
            } else {
                return None;
            }
            more.insert(column, -1.0);
            definitions.push(more);
            before = whole;
            Some(column)
        };
        let sums = self.rows.iter().map(sum).collect();
        (sums, definitions)
    }

    /// A value that no point of the program is below: for any `y ≥ 0` and `z`, with reduced costs
    /// `r = cost + rowsᵀy − equalitiesᵀz`, every point costs at least
    /// `−limits·y + values·z + Σ min(0, r)·upper`. A solver only proposes `y` and `z`; interior
    /// point methods find them for degenerate programs too.
    ///
    /// Columns without an upper bound are taken to be at most the cap, twice the optimum: what is
    /// proved is that no point is better where a larger column is no better itself, as one that
    /// costs.
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
        assert!((optimum.bound - 5.0).abs() < 1e-6);
        assert!((optimum.value(x) - 3.0).abs() < 1e-6);
        // Any multipliers give a bound, good ones a good one.
        assert!(lp.weak_duality(&[0.5], &[0.0], 10.0) <= 5.0);
        assert!(lp.weak_duality(&[2.0], &[0.0], 10.0) <= 5.0);
    }

    /// Rows that are told by their difference from the one before are the same rows: the bound is
    /// the cost of the simplex method's vertex.
    #[test]
    fn rows_that_are_alike_are_short_and_change_nothing() {
        let mut lp = Lp::default();
        let of = |i: usize| (1 + i % 7) as f64;
        // What every row lacks is worth most, and an equality stands between the rows.
        let columns: Vec<_> = (0..40).map(|i| lp.column(20.0 - of(i), 1.0)).collect();
        lp.equal(vec![(columns[0], 1.0), (columns[1], -1.0)], 0.25);
        for row in 0..10 {
            let terms = columns.iter().enumerate().filter(|(i, _)| i % 10 != row);
            lp.at_most(
                terms.map(|(i, &c)| (c, -of(i))).collect(),
                -20.0 - row as f64,
            );
            lp.at_most(vec![(columns[row], 1.0), (columns[row + 1], 1.0)], 1.5);
        }
        let (sums, definitions) = lp.sums();
        assert_eq!(sums.iter().flatten().count(), 10);
        assert!(definitions[1..]
            .iter()
            .all(|definition| definition.len() == 10));
        let vertex = lp.vertex().unwrap();
        let cost: f64 = vertex.iter().zip(&lp.costs).map(|(x, cost)| x * cost).sum();
        let bound = lp.minimise().unwrap().bound;
        assert!(
            bound <= cost + 1e-9 && cost - bound < 1e-6 * cost,
            "{bound} and {cost}"
        );
    }
}

//! The rows of memory: what every moment of an epoch holds, and what the host does.

use super::super::coarse::CoarseMoment;
use super::super::lp::Column;
use super::Model;
use crate::problem::Phase;

impl Model<'_> {
    pub(super) fn memory(
        &mut self,
        j: usize,
        length: Column,
        left: (Option<Column>, Column),
        ahead: Option<Column>,
        needed: &[(Column, f64)],
    ) {
        // Already back before the epoch for a later one: ahead_{j-1} − needed_j.
        let back = ahead.map(|ahead| {
            let back = self.moving();
            let mut row = vec![(ahead, 1.0), (back, -1.0)];
            row.extend(needed.iter().map(|&(c, b)| (c, -b)));
            self.lp.at_most(row, 0.0);
            back
        });
        let (before, after) = left;
        let at_end = self.leaving_at_end(j, after);
        let epoch = &self.coarse.epochs[j];
        let tightest = epoch.moments.iter().max_by_key(|m| m.fixed);
        let single = epoch.steps.0 == epoch.steps.1;
        let forward = self.problem.program[epoch.steps.0].phase == Phase::Forward;
        let within = before.zip(tightest).filter(|_| single && forward);
        let within = within.map(|(before, moment)| {
            let leaving = self.leaving_at(j, moment, length, before);
            (moment.to_come_ns, leaving)
        });
        let margin = self.margins.device.get(j).copied().unwrap_or(0);
        let limit = self.mem(self.problem.budget.device.get()) - self.mem(margin);
        for moment in &epoch.moments {
            let leaving = match within {
                Some((until, leaving)) if moment.to_come_ns >= until => leaving,
                _ => at_end,
            };
            let moving = [leaving].into_iter().chain(back).map(|c| (c, 1.0));
            let row = self.moment(j, moment, moving.collect());
            self.lp.at_most(row, limit - self.mem(moment.fixed));
        }
    }

    /// Still leaving throughout epoch `j`: what forward is through with before it, less what leaves
    /// until its end: left_j − (made until j, used by forward in j or later).
    fn leaving_at_end(&mut self, j: usize, left: Column) -> Column {
        let leaving = self.moving();
        let mut row = vec![(left, 1.0), (leaving, -1.0)];
        for (c, class) in self.coarse.classes.iter().enumerate() {
            if class.made <= j && class.forward_until >= j {
                row.push((self.swap[c], -self.mem(class.host_bytes)));
            }
        }
        for (g, group) in self.coarse.groups.iter().enumerate() {
            if group.completes_in(j) {
                row.extend(self.leaving_of_group(g).into_iter().map(|(c, b)| (c, -b)));
            }
        }
        self.lp.at_most(row, 0.0);
        leaving
    }

    /// Still leaving at a moment of step `j`: left_{j−1} − (made before j, used by forward in j or
    /// later), less what leaves in the time δ until then; what comes after takes the rest of the
    /// step: δ + to come ≤ Δ_j.
    fn leaving_at(
        &mut self,
        j: usize,
        moment: &CoarseMoment,
        length: Column,
        before: Column,
    ) -> Column {
        let leaving = self.moving();
        let mut row = vec![(before, 1.0), (leaving, -1.0)];
        for (c, class) in self.coarse.classes.iter().enumerate() {
            if class.made < j && class.forward_until >= j {
                row.push((self.swap[c], -self.mem(class.host_bytes)));
            }
        }
        if !self.margins.lingering {
            let until = self.lp.column(0.0, f64::INFINITY);
            let out = self.moving();
            let per_unit = self.mem_per_time(self.problem.machine.links.d2h.rate.get());
            self.lp.at_most(vec![(out, 1.0), (until, -per_unit)], 0.0);
            let to_come = self.time(moment.to_come_ns);
            self.lp
                .at_most(vec![(until, 1.0), (length, -1.0)], -to_come);
            row.push((out, -1.0));
        }
        self.lp.at_most(row, 0.0);
        leaving
    }

    /// Units of memory that a rate in bytes per second moves in a unit of time.
    fn mem_per_time(&self, rate: u64) -> f64 {
        rate as f64 * self.units.nanos / (self.units.bytes * 1e9)
    }

    fn moment(
        &self,
        j: usize,
        moment: &CoarseMoment,
        mut row: Vec<(Column, f64)>,
    ) -> Vec<(Column, f64)> {
        for &class in &moment.kept {
            let sizes = &self.coarse.classes[class];
            row.push((self.keep[class], self.mem(sizes.bytes)));
            row.extend(self.pack[class].map(|pack| (pack, self.mem(sizes.host_bytes))));
        }
        for (g, group) in self.coarse.groups.iter().enumerate() {
            let (resident, host, _) = self.placed[g];
            let at_work = moment.weights.get(&g).copied().unwrap_or(0);
            let waiting = moment.gradients.get(&g).copied().unwrap_or(0);
            let weights = self.mem(group.weight_bytes - at_work);
            row.push((resident, weights + self.mem(group.state_bytes + waiting)));
            row.extend(host.map(|c| (c, weights)));
            let between = group.forward.is_some_and(|(_, last)| last < j)
                && group.backward.is_some_and(|(first, _)| first > j);
            if between {
                row.extend(self.stays[g].map(|c| (c, self.mem(group.weight_bytes))));
            }
        }
        row
    }

    pub(super) fn host(&mut self) {
        let mut row: Vec<(Column, f64)> = Vec::new();
        for (c, class) in self.coarse.classes.iter().enumerate() {
            row.push((self.swap[c], self.repeats() * self.mem(class.host_bytes)));
        }
        for (g, group) in self.coarse.groups.iter().enumerate() {
            let (_, host, streamed) = self.placed[g];
            row.extend(host.map(|c| (c, self.mem(group.host_bytes))));
            row.push((streamed, self.mem(group.host_bytes)));
        }
        let limit = self
            .problem
            .budget
            .host
            .get()
            .saturating_sub(self.margins.host);
        self.lp.at_most(row, self.mem(limit));
    }
}

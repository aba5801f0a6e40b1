//! Speed over lengths, and recompute time by copy time: a line for each strategy or tensor.

use ebbtide_solver::units::Nanos;

use super::{key, line, look, token_axis, KEYS, SHAPES};
use crate::format::comparison::{ComparisonFile, Fit, Group};
use crate::report::comparison::tables::ratios;
use crate::report::comparison::words::{beyond_measured_lengths, cause, fastest, tokens};
use crate::report::figure::{Axis, Colour, Figure, Mark, Panel, Shape, PALETTE};
use crate::report::percent;

/// The key of what has no line comes last.
const NOWHERE: (f64, f64) = (0.0, 0.0);

/// One value of every plan over the lengths: a line for each strategy, broken where nothing fits.
fn lines(
    file: &ComparisonFile,
    groups: &[&Group],
    value: impl Fn(&Group, &Fit) -> f64,
    show: impl Fn(f64) -> String,
    floor: &[(f64, f64)],
) -> Vec<Mark> {
    let mut marks = Vec::new();
    if let Some(&last) = floor.last() {
        marks.push(Mark::Line {
            points: floor.to_vec(),
            colour: Colour::Muted,
            width: 1,
            dashed: true,
        });
        let words = "floor: all on the device (dashed)";
        marks.push(key(last, words, Shape::None, Colour::Muted));
    }
    let mut dots = Vec::new();
    for strategy in &file.settings.strategies {
        let (colour, shape, width) = look(file, strategy);
        let mut points = Vec::new();
        let mut last = None;
        for (i, group) in groups.iter().enumerate() {
            let Some(fit) = group.fit(strategy) else {
                marks.extend(line(std::mem::take(&mut points), colour, width));
                continue;
            };
            let (x, y) = ((group.seq as f64).log2(), value(group, fit));
            points.push((x, y));
            let guessed = beyond_measured_lengths(group);
            dots.push(Mark::Dot {
                at: (x, y),
                shape: if guessed { Shape::Ring } else { shape },
                colour,
                says: format!(
                    "{strategy} at {} tokens: {}, {} a step, {:.3} × the floor{}",
                    tokens(group.seq),
                    show(y),
                    Nanos::new(fit.step_ns),
                    fit.over(group.floor_ns),
                    if guessed {
                        " (beyond the measured lengths)"
                    } else {
                        ""
                    }
                ),
            });
            let next = groups.get(i + 1);
            let next =
                next.and_then(|next| Some((next.seq, next.cell(strategy)?.misses.as_deref()?)));
            last = Some(((x, y), next));
        }
        marks.extend(line(points, colour, width));
        let first = groups
            .first()
            .and_then(|g| g.cell(strategy)?.misses.as_deref());
        let (at, why) = match (last, first) {
            (Some((at, Some((seq, why)))), _) => {
                (at, format!("{strategy} ({}: {})", tokens(seq), cause(why)))
            }
            (Some((at, None)), _) => (at, strategy.clone()),
            (None, Some(why)) => (NOWHERE, format!("{strategy} (nowhere: {})", cause(why))),
            (None, None) => continue,
        };
        marks.push(key(at, why, shape, colour));
    }
    marks.extend(dots);
    marks
}

/// Tokens a second and MFU.
pub(super) fn speed(file: &ComparisonFile, method: &str, groups: &[&Group]) -> Figure {
    let per_step = file.settings.batch * u64::from(file.settings.accumulate);
    let rate = |group: &Group| (group.seq * per_step) as f64 / (group.floor_ns.max(1) as f64 / 1e9);
    let log = |v: f64| v.max(1e-9).log2();
    let rates = groups.iter().map(|g| ((g.seq as f64).log2(), log(rate(g))));
    let rates = Vec::from_iter(rates);
    let all = groups
        .iter()
        .flat_map(|g| g.cells.iter().filter(|c| c.tiled));
    let all = all.filter_map(|cell| Some(cell.fits.as_ref()?.tokens_per_s));
    let (least, most) = groups
        .iter()
        .map(|g| rate(g))
        .chain(all)
        .fold((f64::INFINITY, 1.0), |(least, most): (f64, f64), rate| {
            (least.min(rate), most.max(rate))
        });
    let whole = |v: f64| format!("{v:.0}");
    let tokens_per_s = Panel {
        title: "tokens a second (logarithmic)".into(),
        height: 300,
        x: token_axis(groups),
        y: Axis::log2(least.max(1e-3), most, whole),
        marks: lines(
            file,
            groups,
            |_, fit| log(fit.tokens_per_s),
            |v| format!("{:.0} tokens/s", v.exp2()),
            &rates,
        ),
    };
    // The model's own FLOPs are the same for every plan of a length.
    let floors = groups.iter().filter_map(|group| {
        let fit = fastest(group)?.1;
        Some((
            (group.seq as f64).log2(),
            fit.mfu * fit.over(group.floor_ns),
        ))
    });
    let floors = Vec::from_iter(floors);
    let best = floors.iter().map(|(_, mfu)| *mfu).fold(0.0, f64::max);
    let mfu = Panel {
        title: "MFU: the model's own FLOPs by the device's peak".into(),
        height: 300,
        x: token_axis(groups),
        y: Axis::linear(best, |v| format!("{:.0} %", v * 100.0)),
        marks: lines(file, groups, |_, fit| fit.mfu, percent, &floors),
    };
    Figure {
        name: format!("speed-{method}"),
        title: format!(
            "Speed with {method}: {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "Tokens a second and MFU over the length of a sequence, a line for each strategy; \
                a line that ends says what \
                is short at the next length. The dashed line is the \
                floor. Rings lie beyond the lengths that the profile measured."
            .into(),
        panels: vec![tokens_per_s, mfu],
        margins: KEYS,
    }
}

/// Recompute time by copy time of every tensor.
pub(super) fn crossover(file: &ComparisonFile) -> Option<Figure> {
    let method = *file.methods().first()?;
    let groups: Vec<&Group> = file.of_method(method).collect();
    let tensors = &groups.first()?.tensors;
    let mut marks = Vec::new();
    let mut range = (0.5f64, 2.0f64);
    for (nth, tensor) in tensors.iter().enumerate() {
        let colour = PALETTE[nth % PALETTE.len()];
        let points = ratios(&groups, &tensor.tensor);
        let shown = points.iter().filter(|(_, ratio)| *ratio >= 1.0 / 64.0);
        let places: Vec<(f64, f64)> = shown
            .clone()
            .map(|(seq, r)| ((*seq as f64).log2(), r.log2()))
            .collect();
        let Some(&last) = places.last() else { continue };
        for &(_, ratio) in shown.clone() {
            range = (range.0.min(ratio), range.1.max(ratio));
        }
        marks.push(key(
            last,
            tensor.tensor.clone(),
            SHAPES[nth % SHAPES.len()],
            colour,
        ));
        marks.extend(shown.zip(&places).map(|(&(seq, ratio), &at)| Mark::Dot {
            at,
            shape: SHAPES[nth % SHAPES.len()],
            colour,
            says: format!(
                "{} at {} tokens: making it again takes {ratio:.2} × a copy",
                tensor.tensor,
                tokens(seq)
            ),
        }));
        marks.extend(line(places, colour, 1));
    }
    let x = token_axis(&groups);
    marks.insert(
        0,
        Mark::Line {
            points: vec![(x.from, 0.0), (x.to, 0.0)],
            colour: Colour::Ink,
            width: 1,
            dashed: true,
        },
    );
    Some(Figure {
        name: "crossover".into(),
        title: format!(
            "Recompute or swap? {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "How long making a tensor again takes, by how long a copy to or from the host \
                takes. Above the dashed line a copy is quicker: below it recompute. What takes \
                less than a sixty-fourth of its copy is left out."
            .into(),
        panels: vec![Panel {
            title: "recompute time by copy time (logarithmic)".into(),
            height: 280,
            x,
            y: Axis::log2(range.0, range.1, |v| match v < 1.0 {
                true => format!("1/{:.0}", 1.0 / v),
                false => format!("{v:.0} ×"),
            }),
            marks,
        }],
        margins: (74, 110),
    })
}

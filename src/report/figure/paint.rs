//! A figure through plotters, on any backend. Pixels are counted once and drawn `scale` times as
//! large.

use std::sync::Once;

use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{register_font, FontStyle};

use super::{Axis, Colour, Figure, Mark, Panel, Shape, Side};

type Area<DB> = DrawingArea<DB, Shift>;
type Plot<DB> = DrawingArea<DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<DB, T> = Result<T, DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

const WIDTH: i32 = 860;
/// Above the first panel, for the figure's title.
const HEAD: i32 = 34;
/// Above each plot, for its title.
const ABOVE: i32 = 30;
/// Below each plot, for the labels of its axis.
const BELOW: i32 = 34;
const TITLE: i32 = 16;
const TEXT: i32 = 13;
const SMALL: i32 = 12;
/// Keys are at least so far apart.
const APART: i32 = 15;

/// A place that says something when it is pointed at, in pixels.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) w: i32,
    pub(super) h: i32,
    pub(super) words: String,
}

/// Width and height in dots.
pub(super) fn size(figure: &Figure, scale: i32) -> (u32, u32) {
    let panels = figure
        .panels
        .iter()
        .map(|panel| ABOVE + panel.height + BELOW);
    let height = HEAD + panels.sum::<i32>();
    ((WIDTH * scale) as u32, (height * scale) as u32)
}

/// The one font there is; plotters looks it up by name.
fn font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let bytes = include_bytes!("DejaVuSans-subset.ttf");
        let registered = register_font("sans-serif", FontStyle::Normal, bytes);
        assert!(registered.is_ok(), "the font that is compiled in is one");
    });
}

/// Draws all of it; says where values are.
pub(super) fn paint<DB: DrawingBackend>(
    figure: &Figure,
    area: &Area<DB>,
    scale: i32,
) -> Drawn<DB, Vec<Said>> {
    font();
    area.fill(&Colour::Paper.rgb())?;
    let title = style(TITLE, Colour::Ink, scale, HPos::Left);
    area.draw(&Text::new(
        figure.title.clone(),
        (14 * scale, 12 * scale),
        title,
    ))?;
    let mut said = Vec::new();
    let mut top = HEAD;
    for panel in &figure.panels {
        let painter = Painter {
            area,
            scale,
            panel,
            left: figure.margins.0,
            right: WIDTH - figure.margins.1,
            top: top + ABOVE,
        };
        painter.panel(&mut said)?;
        top += ABOVE + panel.height + BELOW;
    }
    Ok(said)
}

fn style(size: i32, colour: Colour, scale: i32, side: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", f64::from(size * scale)).into_font();
    let vertical = if size == TITLE {
        VPos::Top
    } else {
        VPos::Center
    };
    TextStyle {
        color: colour.rgb().to_backend_color(),
        ..TextStyle::from(font)
    }
    .pos(Pos::new(side, vertical))
}

/// One panel in its place.
struct Painter<'a, DB: DrawingBackend> {
    area: &'a Area<DB>,
    scale: i32,
    panel: &'a Panel,
    left: i32,
    right: i32,
    top: i32,
}

impl<DB: DrawingBackend> Painter<'_, DB> {
    fn bottom(&self) -> i32 {
        self.top + self.panel.height
    }
    /// Pixels to dots.
    fn dots(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale, y * self.scale)
    }
    fn text(&self, words: &str, at: (i32, i32), size: i32, c: Colour, side: HPos) -> Drawn<DB, ()> {
        let style = style(size, c, self.scale, side);
        self.area
            .draw(&Text::new(words.to_owned(), self.dots(at), style))
    }

    fn panel(&self, said: &mut Vec<Said>) -> Drawn<DB, ()> {
        let Panel { x, y, title, .. } = self.panel;
        self.text(title, (14, self.top - 14), TEXT, Colour::Muted, HPos::Left)?;
        let (left, right) = (self.left * self.scale, self.right * self.scale);
        let (top, bottom) = (self.top * self.scale, self.bottom() * self.scale);
        let plot =
            self.area
                .clone()
                .apply_coord_spec(Cartesian2d::<RangedCoordf64, RangedCoordf64>::new(
                    x.from..x.to,
                    y.from..y.to,
                    (left..right, bottom..top),
                ));
        self.axes(&plot)?;
        let mut labels = Vec::new();
        for mark in &self.panel.marks {
            match mark {
                Mark::Label {
                    at,
                    text,
                    colour,
                    side,
                } => {
                    let (x, y) = plot.map_coordinate(at);
                    let at = (x / self.scale, y / self.scale);
                    labels.push((at, text.as_str(), *colour, *side));
                }
                _ => self.mark(&plot, mark, said)?,
            }
        }
        self.labels(labels)
    }

    fn axes(&self, plot: &Plot<DB>) -> Drawn<DB, ()> {
        let Panel { x, y, .. } = self.panel;
        let faint = Colour::Faint.rgb().stroke_width(self.scale as u32);
        let inside = |axis: &Axis, at: f64| (axis.from..=axis.to).contains(&at);
        for (at, name) in x.ticks.iter().filter(|(at, _)| inside(x, *at)) {
            let (px, _) = plot.map_coordinate(&(*at, y.from));
            let px = px / self.scale;
            if x.lines {
                let ends = [(px, self.top), (px, self.bottom())].map(|at| self.dots(at));
                self.area.draw(&PathElement::new(ends, faint))?;
            }
            self.text(
                name,
                (px, self.bottom() + 13),
                SMALL,
                Colour::Muted,
                HPos::Center,
            )?;
        }
        for (at, name) in y.ticks.iter().filter(|(at, _)| inside(y, *at)) {
            let (_, py) = plot.map_coordinate(&(x.from, *at));
            let py = py / self.scale;
            if y.lines {
                let ends = [(self.left, py), (self.right, py)].map(|at| self.dots(at));
                self.area.draw(&PathElement::new(ends, faint))?;
            }
            self.text(name, (self.left - 7, py), SMALL, Colour::Muted, HPos::Right)?;
        }
        let ends = [(self.left, self.bottom()), (self.right, self.bottom())];
        let muted = Colour::Muted.rgb().stroke_width(self.scale as u32);
        self.area
            .draw(&PathElement::new(ends.map(|at| self.dots(at)), muted))
    }

    fn mark(&self, plot: &Plot<DB>, mark: &Mark, said: &mut Vec<Said>) -> Drawn<DB, ()> {
        match mark {
            Mark::Line {
                points,
                colour,
                width,
                dashed,
            } => {
                let style = colour.rgb().stroke_width(width * self.scale as u32);
                match dashed {
                    true => {
                        let (dash, gap) = (6 * self.scale, 4 * self.scale);
                        plot.draw(&DashedPathElement::new(
                            points.iter().copied(),
                            dash,
                            gap,
                            style,
                        ))
                    }
                    false => plot.draw(&PathElement::new(points.clone(), style)),
                }
            }
            Mark::Area { points, colour } => {
                plot.draw(&Polygon::new(points.clone(), colour.rgb().filled()))
            }
            Mark::Box {
                from,
                to,
                colour,
                says,
            } => {
                let mut corners = [plot.map_coordinate(from), plot.map_coordinate(to)];
                // What is there is seen, however short.
                corners[1].0 = corners[1].0.max(corners[0].0 + 1);
                self.area
                    .draw(&Rectangle::new(corners, colour.rgb().filled()))?;
                let [(x0, y0), (x1, y1)] = corners.map(|(x, y)| (x / self.scale, y / self.scale));
                if !says.is_empty() {
                    said.push(Said {
                        x: x0.min(x1),
                        y: y0.min(y1),
                        w: (x1 - x0).abs().max(1),
                        h: (y1 - y0).abs().max(1),
                        words: says.clone(),
                    });
                }
                Ok(())
            }
            Mark::Dot {
                at,
                shape,
                colour,
                says,
            } => {
                let (x, y) = plot.map_coordinate(at);
                self.dot((x, y), *shape, *colour)?;
                said.push(Said {
                    x: x / self.scale - 8,
                    y: y / self.scale - 8,
                    w: 16,
                    h: 16,
                    words: says.clone(),
                });
                Ok(())
            }
            Mark::Label { .. } => Ok(()),
        }
    }

    fn dot(&self, at: (i32, i32), shape: Shape, colour: Colour) -> Drawn<DB, ()> {
        let (x, y) = at;
        let r = 4 * self.scale;
        let (fill, paper) = (colour.rgb().filled(), Colour::Paper.rgb().filled());
        let line = colour.rgb().stroke_width(2 * self.scale as u32);
        match shape {
            Shape::Disc => self.area.draw(&Circle::new(at, r, fill)),
            Shape::Ring => {
                self.area.draw(&Circle::new(at, r, paper))?;
                self.area.draw(&Circle::new(at, r, line))
            }
            Shape::Square => {
                let corners = [(x - r, y - r), (x + r, y + r)];
                self.area.draw(&Rectangle::new(corners, fill))
            }
            Shape::Triangle => {
                let corners = vec![(x, y - r - 1), (x + r + 1, y + r), (x - r - 1, y + r)];
                self.area.draw(&Polygon::new(corners, fill))
            }
            Shape::Diamond => {
                let r = r + self.scale;
                let corners = vec![(x, y - r), (x + r, y), (x, y + r), (x - r, y)];
                self.area.draw(&Polygon::new(corners, fill))
            }
            Shape::None => Ok(()),
            Shape::Cross => {
                self.area
                    .draw(&PathElement::new([(x - r, y - r), (x + r, y + r)], line))?;
                self.area
                    .draw(&PathElement::new([(x - r, y + r), (x + r, y - r)], line))
            }
        }
    }

    /// Words in their places; those beside the plot are moved apart.
    fn labels(&self, labels: Vec<((i32, i32), &str, Colour, Side)>) -> Drawn<DB, ()> {
        let mut beside = Vec::new();
        for ((x, y), text, colour, side) in labels {
            match side {
                Side::Right => self.text(text, (x + 6, y), SMALL, colour, HPos::Left)?,
                Side::Above => {
                    for (nth, word) in text.split(' ').rev().enumerate() {
                        let at = (x, y - 14 - 13 * nth as i32);
                        self.text(word, at, SMALL, colour, HPos::Center)?;
                    }
                }
                Side::Beside(shape) => beside.push(((x, y), text, colour, shape)),
            }
        }
        beside.sort_by_key(|&((x, y), ..)| (y, x));
        let wanted = Vec::from_iter(beside.iter().map(|&((_, y), ..)| y));
        let placed = apart(&wanted, self.top + 6, self.bottom() - 6);
        let column = self.right + 16;
        for (((x, y), text, colour, shape), placed) in beside.into_iter().zip(placed) {
            // From what ends at the plot's edge a line leads to its key.
            if x + 40 > self.right && (placed - y).abs() > 3 {
                let ends = [(x + 6, y), (column - 7, placed)].map(|at| self.dots(at));
                let line = colour.rgb().stroke_width(self.scale as u32);
                self.area.draw(&PathElement::new(ends, line))?;
            }
            self.dot(self.dots((column, placed)), shape, colour)?;
            self.text(text, (column + 10, placed), SMALL, Colour::Ink, HPos::Left)?;
        }
        Ok(())
    }
}

/// Heights at least [`APART`] from one another, in the order of those wanted and as near to them,
/// in the least squares, as can be; within the limits where there is room.
///
/// Less `APART` for each one before it, heights need only not fall: neighbours that would are put
/// at their mean, until none does.
fn apart(wanted: &[i32], least: i32, most: i32) -> Vec<i32> {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for (nth, &height) in wanted.iter().enumerate() {
        let mut run = (height - nth as i32 * APART, 1);
        while let Some(&(sum, count)) = runs.last() {
            if sum * run.1 <= run.0 * count {
                break;
            }
            run = (run.0 + sum, run.1 + count);
            runs.pop();
        }
        runs.push(run);
    }
    let most = most - (wanted.len() as i32 - 1) * APART;
    let means = runs
        .into_iter()
        .flat_map(|(sum, count)| std::iter::repeat_n(sum / count, count as usize));
    means
        .enumerate()
        .map(|(nth, height)| height.min(most).max(least) + nth as i32 * APART)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_apart_and_stay_inside() {
        assert_eq!(apart(&[10, 11, 12, 98], 0, 100), [0, 15, 30, 98]);
        assert_eq!(apart(&[50, 51, 52], 0, 100), [36, 51, 66]);
        // What is where it may be is not moved.
        assert_eq!(apart(&[5, 40, 90], 0, 100), [5, 40, 90]);
    }
}

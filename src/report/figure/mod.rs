//! Figures as plain data, and what becomes of them: SVG for pages, PNG for everything else.
//!
//! A [`Figure`] is panels below one another, a [`Panel`] two axes and marks in their coordinates.
//! `paint` draws one through plotters, with a font that is compiled in, so that no system font is
//! asked for; [`svg()`] adds what only a page can use: titles for screen readers, values under the
//! pointer, and other colours on a dark screen. Nothing here knows what is drawn.

mod colour;
mod paint;
mod png;
mod svg;

pub use colour::{Colour, PALETTE};
pub use png::png;
pub use svg::{escape, svg, STYLE};

/// Panels below one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of its files.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What can be seen in it, in a sentence or two.
    pub words: String,
    /// Its panels.
    pub panels: Vec<Panel>,
    /// Room for labels on the left and on the right, in pixels.
    pub margins: (i32, i32),
}

/// Two axes and what is drawn between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// How high the plot is, in pixels.
    pub height: i32,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// What is drawn, in this order.
    pub marks: Vec<Mark>,
}

/// An axis: its ends, and where it is labelled.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The lower end.
    pub from: f64,
    /// The upper end.
    pub to: f64,
    /// Where a line and a label stand.
    pub ticks: Vec<(f64, String)>,
    /// Whether a line stands there.
    pub lines: bool,
}

/// Something drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// The points.
        points: Vec<(f64, f64)>,
        /// Its colour.
        colour: Colour,
        /// Its width in pixels.
        width: u32,
        /// Whether it is dashed.
        dashed: bool,
    },
    /// A point with a value.
    Dot {
        /// Where.
        at: (f64, f64),
        /// Its form: a person who sees no colours knows it by that.
        shape: Shape,
        /// Its colour.
        colour: Colour,
        /// What it says when it is pointed at.
        says: String,
    },
    /// A filled rectangle.
    Box {
        /// A corner.
        from: (f64, f64),
        /// The other.
        to: (f64, f64),
        /// Its colour.
        colour: Colour,
        /// What it says when it is pointed at; nothing: it cannot be.
        says: String,
    },
    /// A filled polygon.
    Area {
        /// Its corners.
        points: Vec<(f64, f64)>,
        /// Its colour.
        colour: Colour,
    },
    /// Words.
    Label {
        /// Beside what.
        at: (f64, f64),
        /// The words.
        text: String,
        /// Their colour.
        colour: Colour,
        /// Where they stand.
        side: Side,
    },
}

/// The form of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A disc.
    Disc,
    /// A ring: of a value that is a guess.
    Ring,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
    /// A diamond.
    Diamond,
    /// A cross: of a value that is not there.
    Cross,
    /// Nothing.
    None,
}

/// Where words stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// To the right.
    Right,
    /// Above, a word a line.
    Above,
    /// In the margin beside the plot, after this form in their colour, moved up or down where they
    /// would meet others.
    Beside(Shape),
}

impl Axis {
    /// From zero to a little more than `most`, labelled at round numbers by `name`.
    pub fn linear(most: f64, name: impl Fn(f64) -> String) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let rough = most / 4.0;
        let ten = 10f64.powf(rough.log10().floor());
        let fits = |step: &f64| most / step <= 5.0;
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|times| times * ten);
        let step = steps.into_iter().find(fits).unwrap_or(10.0 * ten);
        let count = (most * 1.02 / step).floor() as u32;
        let ticks = (0..=count).map(|i| f64::from(i) * step);
        Self {
            from: 0.0,
            to: most * 1.05,
            ticks: ticks.map(|at| (at, name(at))).collect(),
            lines: true,
        }
    }
    /// Powers of two between two values, both above zero, in the coordinates of their logarithms.
    pub fn log2(least: f64, most: f64, name: impl Fn(f64) -> String) -> Self {
        let (from, to) = (
            least.log2().floor(),
            most.log2().ceil().max(least.log2().floor() + 1.0),
        );
        let every = ((to - from) / 8.0).ceil().max(1.0);
        let count = ((to - from) / every).floor() as u32;
        let ticks = (0..=count).map(|i| from + f64::from(i) * every);
        Self {
            from,
            to,
            ticks: ticks.map(|at| (at, name(at.exp2()))).collect(),
            lines: true,
        }
    }
    /// One after the other, from the top: names in rows.
    pub fn rows(names: Vec<String>) -> Self {
        let count = names.len() as f64;
        let place = |(i, name)| (count - 0.5 - i as f64, name);
        Self {
            from: 0.0,
            to: count.max(1.0),
            ticks: names.into_iter().enumerate().map(place).collect(),
            lines: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_labelled_at_round_numbers() {
        let axis = Axis::linear(47.0, |v| format!("{v}"));
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(labels, ["0", "10", "20", "30", "40"]);
        assert_eq!(axis.from, 0.0);
        let axis = Axis::log2(900.0, 9000.0, |v| format!("{v}"));
        assert_eq!((axis.from, axis.to), (9.0, 14.0));
        assert_eq!(axis.ticks[0].1, "512");
    }

    #[test]
    fn a_figure_is_the_same_in_both_forms_and_every_word_is_in_it() {
        let figure = Figure {
            name: "one".into(),
            title: "A & B".into(),
            words: "Two points.".into(),
            margins: (60, 60),
            panels: vec![Panel {
                title: "panel".into(),
                height: 100,
                x: Axis::linear(2.0, |v| format!("{v}")),
                y: Axis::linear(2.0, |v| format!("{v}")),
                marks: vec![
                    Mark::Dot {
                        at: (1.0, 1.0),
                        shape: Shape::Disc,
                        colour: PALETTE[0],
                        says: "one < two".into(),
                    },
                    Mark::Label {
                        at: (1.0, 1.0),
                        text: "label".into(),
                        colour: Colour::Ink,
                        side: Side::Beside(Shape::Disc),
                    },
                ],
            }],
        };
        let text = svg(&figure);
        for words in ["A &amp; B", "one &lt; two", "label", "panel", "Two points."] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let image = png(&figure);
        assert_eq!(&image[1..4], b"PNG");
    }
}

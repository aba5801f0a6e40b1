//! Colours that people with any colour vision tell apart (after Okabe and Ito 2008; the test sees
//! them as Machado, Oliveira and Fernandes 2009 say), each with the one that stands for it on a
//! dark screen.

use plotters::style::RGBColor;

/// A colour by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Words and axes.
    Ink,
    /// Words that matter less.
    Muted,
    /// Lines that only guide the eye.
    Faint,
    /// What is drawn upon.
    Paper,
    /// One of several things.
    Hue(usize),
}

/// On paper, and on a dark screen: at least 3:1 against what they are drawn upon.
const HUES: [(u32, u32); 8] = [
    (0x0072B2, 0x3D95D6),
    (0xD55E00, 0xF08A3C),
    (0x009E73, 0x2CC79B),
    (0xB36FA0, 0xD68FBF),
    (0x403A2C, 0xF7EDC4),
    (0x2E9BD6, 0xA6DAFA),
    (0x6B6B6B, 0x8F8F8F),
    (0x8C510A, 0xB5702F),
];
const INK: (u32, u32) = (0x1A1A1B, 0xE8E8EA);
const MUTED: (u32, u32) = (0x5F6368, 0xA6ABB2);
const FAINT: (u32, u32) = (0xDDDEE0, 0x363A40);
const PAPER: (u32, u32) = (0xFFFFFF, 0x15171B);

/// Colours for things that have no colour of their own.
pub const PALETTE: [Colour; 8] = [
    Colour::Hue(0),
    Colour::Hue(1),
    Colour::Hue(2),
    Colour::Hue(3),
    Colour::Hue(4),
    Colour::Hue(5),
    Colour::Hue(6),
    Colour::Hue(7),
];

impl Colour {
    const fn pair(self) -> (u32, u32) {
        match self {
            Colour::Ink => INK,
            Colour::Muted => MUTED,
            Colour::Faint => FAINT,
            Colour::Paper => PAPER,
            Colour::Hue(hue) => HUES[hue % HUES.len()],
        }
    }
    /// On paper.
    pub(super) fn rgb(self) -> RGBColor {
        let [_, r, g, b] = self.pair().0.to_be_bytes();
        RGBColor(r, g, b)
    }
    /// All pairs as `#RRGGBB`: on paper, in the dark.
    pub(super) fn pairs() -> impl Iterator<Item = (String, String)> {
        let hex = |colour: u32| format!("#{colour:06X}");
        let all = HUES.into_iter().chain([INK, MUTED, FAINT, PAPER]);
        all.map(move |(light, dark)| (hex(light), hex(dark)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linear light as it is without one kind of cones (Machado, Oliveira and Fernandes 2009,
    /// severity 1), and as it is.
    const VISIONS: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ];

    fn light(colour: u32) -> [f64; 3] {
        let [_, channels @ ..] = colour.to_be_bytes();
        channels.map(|c| match f64::from(c) / 255.0 {
            c if c <= 0.04045 => c / 12.92,
            c => ((c + 0.055) / 1.055).powf(2.4),
        })
    }

    /// CIELAB under D65.
    fn lab(vision: &[[f64; 3]; 3], colour: u32) -> [f64; 3] {
        let times = |rows: &[[f64; 3]; 3], v: [f64; 3]| {
            rows.map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum::<f64>())
        };
        let seen = times(vision, light(colour)).map(|c| c.clamp(0.0, 1.0));
        let white = [0.95047, 1.0, 1.08883];
        let xyz = times(
            &[
                [0.4124, 0.3576, 0.1805],
                [0.2126, 0.7152, 0.0722],
                [0.0193, 0.1192, 0.9505],
            ],
            seen,
        );
        let [x, y, z] = [0, 1, 2].map(|i| match xyz[i] / white[i] {
            t if t > 0.008856 => t.cbrt(),
            t => 7.787 * t + 16.0 / 116.0,
        });
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    #[test]
    fn every_vision_tells_hues_apart() {
        for (vision, matrix) in VISIONS.iter().enumerate() {
            for (i, a) in HUES.iter().enumerate() {
                for b in &HUES[..i] {
                    for (a, b) in [(a.0, b.0), (a.1, b.1)] {
                        let (p, q) = (lab(matrix, a), lab(matrix, b));
                        let apart = p.iter().zip(q).map(|(p, q)| (p - q).powi(2)).sum::<f64>();
                        let apart = apart.sqrt();
                        assert!(
                            apart > 10.0,
                            "vision {vision}: {a:06X}, {b:06X}: {apart:.1}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn hues_stand_out_from_what_they_are_drawn_upon() {
        let luminance = |c| {
            let [r, g, b] = light(c);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let contrast = |a, b| {
            let (a, b): (f64, f64) = (luminance(a) + 0.05, luminance(b) + 0.05);
            f64::max(a / b, b / a)
        };
        for (light, dark) in HUES {
            assert!(contrast(light, PAPER.0) > 3.0, "{light:06X}");
            assert!(contrast(dark, PAPER.1) > 3.0, "{dark:06X}");
        }
    }
}

//! Colours that people with any colour vision tell apart (Okabe and Ito 2008), each with the one
//! that stands for it on a dark screen.

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
    (0x0072B2, 0x4BA6E3),
    (0xD55E00, 0xF08A3C),
    (0x009E73, 0x2CC79B),
    (0xB36FA0, 0xD68FBF),
    (0xB8860B, 0xE6B53C),
    (0x2E9BD6, 0x7CC6F2),
    (0x7A7A7A, 0xA8A8A8),
    (0x8C510A, 0xC98F4E),
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

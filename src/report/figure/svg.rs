//! A figure as SVG: plotters' drawing with titles for screen readers, colours for a dark screen,
//! and an invisible mark on every value that says it when it is pointed at.

use std::fmt::Write;

use plotters::prelude::{IntoDrawingArea, SVGBackend};

use super::colour::Colour;
use super::paint::{paint, size, Said};
use super::Figure;

/// What a page's style sheet says of figures; every figure has it too, to stand alone.
pub const STYLE: &str = "text{font-family:system-ui,sans-serif;paint-order:stroke;\
                         stroke:#fff;stroke-width:3px;stroke-linejoin:round}.said{fill:transparent}\
                         .said:hover{stroke:currentColor;stroke-width:1.5}";

/// The file's text.
///
/// # Panics
/// When the figure cannot be drawn, which is a bug: nothing in it comes from outside.
pub fn svg(figure: &Figure) -> String {
    let (width, height) = size(figure, 1);
    let mut drawn = String::new();
    let said = {
        let backend = SVGBackend::with_string(&mut drawn, (width, height));
        let area = backend.into_drawing_area();
        let said = paint(figure, &area, 1).expect("a picture in memory can be drawn");
        area.present().expect("a picture in memory can be drawn");
        said
    };
    // Plotters' own first tag says less than ours.
    let body = drawn.find('>').map_or("", |end| &drawn[end + 1..]);
    let body = body.trim_end().trim_end_matches("</svg>");
    let (title, words) = (escape(&figure.title), escape(&figure.words));
    let id = &figure.name;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
         <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{words}</desc>\n\
         <style>{STYLE}{}</style>\n",
        dark()
    );
    body.lines()
        .filter(|line| !line.is_empty())
        .for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
    text.push_str("<g>\n");
    said.iter().for_each(|said| mark(&mut text, said));
    text.push_str("</g>\n</svg>\n");
    text
}

fn mark(text: &mut String, said: &Said) {
    let Said { x, y, w, h, words } = said;
    let words = escape(words);
    writeln!(
        text,
        "<rect class=\"said\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\">\
         <title>{words}</title></rect>"
    )
    .expect("a string");
}

/// Other colours where the screen is dark; not on paper.
fn dark() -> String {
    let rules = Colour::pairs().map(|(light, dark)| {
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    });
    let rules = String::from_iter(rules);
    format!(
        "@media screen and (prefers-color-scheme:dark){{svg{{color:#E8E8EA}}\
         text{{stroke:#15171B}}{rules}}}"
    )
}

/// Text as XML and HTML can hold it.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

//! A comparison as one page that needs nothing else: figures, tables and the little program that
//! sorts, points and zooms are all in it.

use serde_json::json;

use super::tables::Table;
use super::words;
use crate::format::comparison::{ComparisonFile, Share, Timeline};
use crate::report::figure::{escape, svg, Figure};

const FRAME: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const PROGRAM: &str = include_str!("page.js");

/// The page's text.
pub(super) fn page(file: &ComparisonFile, tables: &[Table], figures: &[Figure]) -> String {
    let items = |lines: Vec<String>| {
        let lines = lines
            .iter()
            .map(|line| format!("<li>{}</li>\n", escape(line)));
        String::from_iter(lines)
    };
    let links = figures
        .iter()
        .map(|figure| (&figure.name, &figure.title))
        .chain(tables.iter().map(|table| (&table.id, &table.title)));
    let links =
        links.map(|(id, title)| format!("<li><a href=\"#{id}\">{}</a></li>\n", escape(title)));
    let command = format!(
        "ebbtide compare --model {} --profile {}",
        file.settings.model, file.settings.profile
    );
    let parts = [
        ("title", escape(&words::title(file))),
        ("style", STYLE.to_owned()),
        ("summary", items(words::summary(file))),
        ("provenance", items(words::provenance(file))),
        ("links", String::from_iter(links)),
        ("figures", String::from_iter(figures.iter().map(figure))),
        ("tables", String::from_iter(tables.iter().map(table))),
        ("version", escape(&file.settings.ebbtide_version)),
        ("command", escape(&command)),
        ("data", file.timeline.as_ref().map_or("null".into(), data)),
        ("program", PROGRAM.to_owned()),
    ];
    // In one pass: what is put in is not looked through again.
    let mut page = String::new();
    let mut rest = FRAME;
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let (name, after) = after.split_once("}}").expect("a placeholder ends");
        let part = parts.iter().find(|(part, _)| *part == name);
        page.push_str(&part.expect("a placeholder has a part").1);
        rest = after;
    }
    page + rest
}

fn figure(figure: &Figure) -> String {
    let zoomed = match figure.name.as_str() {
        "timeline" => "<div id=\"zoom\" hidden></div>\n",
        _ => "",
    };
    format!(
        "<figure id=\"{0}\">\n{zoomed}<div class=\"drawing\" tabindex=\"0\">\n{1}</div>\n\
         <figcaption>{2}</figcaption>\n</figure>\n",
        figure.name,
        svg(figure),
        escape(&figure.words)
    )
}

fn table(table: &Table) -> String {
    let class = |column: usize| match table.numbers.get(column) {
        Some(true) => " class=\"n\"",
        _ => "",
    };
    let head = table.head.iter().enumerate().map(|(column, name)| {
        let class = class(column);
        format!(
            "<th scope=\"col\"{class}><button>{}</button></th>",
            escape(name)
        )
    });
    let row = |row: &Vec<String>| {
        let cells = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("<td{}>{}</td>", class(column), escape(cell)));
        format!("<tr>{}</tr>\n", String::from_iter(cells))
    };
    format!(
        "<section id=\"{0}\">\n<h3>{1}</h3>\n<p>{2}</p>\n<div class=\"wide\" tabindex=\"0\" \
         role=\"region\" aria-label=\"{1}\">\n<table>\n<thead><tr>{3}</tr></thead>\n\
         <tbody>\n{4}</tbody>\n</table>\n</div>\n</section>\n",
        table.id,
        escape(&table.title),
        escape(&table.note),
        String::from_iter(head),
        String::from_iter(table.rows.iter().map(row)),
    )
}

/// What the zoomable timeline is drawn from.
fn data(timeline: &Timeline) -> String {
    let slices = timeline.slices.iter().map(|slice| {
        json!([
            slice.stream,
            slice.kind,
            slice.block,
            slice.start_ns,
            slice.end_ns,
            slice.what
        ])
    });
    let decided = timeline.blocks.iter().map(Share::decided);
    let memory = timeline
        .memory
        .iter()
        .map(|point| json!([point.at_ns, point.bytes]));
    let data = json!({
        "step": timeline.step_ns,
        "slices": Vec::from_iter(slices),
        "decided": Vec::from_iter(decided),
        "memory": Vec::from_iter(memory),
        "categories": timeline.categories,
    });
    // Within a script no `<` can end it.
    data.to_string().replace('<', "\\u003c")
}

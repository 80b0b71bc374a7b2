//! The report as a page of HTML: one file, with its pictures in it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::heat_map;
use super::grid::{Cell, Found, rounds_text};
use crate::drive::Kind;
use crate::failure::Failure;
use crate::sizes::{shown, shown_speed};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 2em auto;
       max-width: 1480px; padding: 0 1.5em }
h1 { font-size: 1.5em; margin: 0 0 .2em } h2 { font-size: 1.15em; margin: 2em 0 .3em }
p { margin: .3em 0; max-width: 60em } .faint { color: #666; max-width: 90em }
.best { background: #eef5ee; border-left: 4px solid #2c7a3f; padding: .7em 1em; margin: 1.2em 0 }
.best strong { font-size: 1.15em }
table { border-collapse: collapse; margin: .6em 0 } th, td { padding: .25em .9em; text-align: right }
th { color: #666; font-weight: normal; border-bottom: 1px solid #ccc }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
tr.chosen td { font-weight: 600 }
figure { margin: .4em 0; overflow-x: auto } figure svg { max-width: 100%; height: auto }
.files { display: flex; flex-wrap: wrap; gap: 1.5em }
pre { background: #f5f5f5; padding: .8em 1em; margin: .4em 0; font-size: 13px }
";

/// The whole page.
///
/// # Errors
/// `Refused` where a picture cannot be drawn.
pub(super) fn html(found: &Found) -> Result<String, Failure> {
    let pictures = [
        (
            Kind::Mixed,
            "reading and writing at once, as in the middle of an optimizer step",
        ),
        (Kind::Out, "writing over files that exist"),
        (Kind::In, "reading"),
    ];
    let mut figures = Vec::new();
    for (kind, what) in pictures {
        figures.push((kind, what, heat_map(found, kind)?));
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "tensorswap tune: " (found.path) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "tensorswap tune: " (found.path) }
                p.faint {
                    (found.machine) ", tensorswap " (found.engine_version) ". "
                    (found.cells.len()) " combinations, " (rounds_text(found.rounds)) ", "
                    (shown(found.measured_bytes)) " moved each time."
                }
                div.best {
                    p { "Best: " strong { (found.best.text()) } }
                    p { (first_upper(&found.gain_text())) "." }
                }
                @for note in &found.notes { p { "Note: " (note) "." } }
                h2 { "The best ones again, in turn, with everything compared" }
                (finalists(found))
                @for (kind, what, picture) in &figures {
                    h2 { (first_upper(kind.name())) }
                    p.faint { "GiB/s " (what) "; rows are block sizes, darker is slower. The setting chosen has a red frame." }
                    figure { (PreEscaped(picture)) }
                }
                h2 { "To use it" }
                (files(found)?)
            }
        }
    };
    Ok(page.into_string())
}

fn first_upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

fn finalists(found: &Found) -> Markup {
    let row = |cell: &Cell| {
        html! {
            tr.chosen[cell.setting == found.best] {
                td {
                    (cell.setting.text())
                    @if cell.setting == found.defaults { " (default)" }
                }
                @for kind in Kind::ALL { td { (shown_speed(cell.speed(kind))) } }
            }
        }
    };
    html! {
        table {
            tr { th { "setting" } @for kind in Kind::ALL { th { (kind.name()) } } }
            @for cell in &found.finalists { (row(cell)) }
        }
    }
}

fn files(found: &Found) -> Result<Markup, Failure> {
    let (config, deepspeed) = (found.configuration_json()?, found.deepspeed_json()?);
    Ok(html! {
        div.files {
            div {
                p { code { "tensorswap.json" } ", for " code { "tsw_config_load_json" } ":" }
                pre { (config) }
            }
            div {
                p { code { "deepspeed_aio.json" } ", a section of a DeepSpeed configuration:" }
                pre { (deepspeed) }
            }
        }
    })
}

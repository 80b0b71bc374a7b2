//! Heat maps of a sweep, drawn as SVG.

use plotters::prelude::*;
use plotters::style::colors::colormaps::ViridisRGB;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::grid::{Cell, Found, Setting};
use crate::drive::Kind;
use crate::failure::Failure;
use crate::sizes::{GIB, exact};

/// Pixels.
const CELL: (i32, i32) = (52, 30);
const LEFT: i32 = 66;
const GAP: i32 = 20;
const TOP: i32 = 30;
const BOTTOM: i32 = 44;

/// One picture: for each backend and kind of page a field of block size by depth, coloured by
/// speed; all fields of a picture share their colours.
///
/// # Errors
/// `Refused` where it cannot be drawn.
pub(super) fn heat_map(found: &Found, kind: Kind) -> Result<String, Failure> {
    let panels = panels_of(found);
    let speeds = found.cells.iter().map(|cell| cell.speed(kind));
    let (lowest, highest) = speeds
        .filter(|speed| speed.is_finite())
        .fold((f64::INFINITY, 0.0_f64), |(low, high), speed| {
            (low.min(speed), high.max(speed))
        });
    let (columns, rows) = (len_of(&found.depths), len_of(&found.blocks));
    let panel_width = columns * CELL.0 + GAP;
    let width = LEFT + len_of(&panels) * panel_width;
    let height = TOP + rows * CELL.1 + BOTTOM;
    let mut svg = String::new();
    let drawn = (|| {
        let size = (width.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw_block_labels(&area, found)?;
        for (index, panel) in (0..).zip(&panels) {
            let left = LEFT + index * panel_width;
            draw_panel(&area, found, kind, panel, left, (lowest, highest))?;
        }
        area.present()
    })();
    drawn.map_err(|error| Failure::Refused(format!("drawing the report: {error}")))?;
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

/// A backend and a kind of page.
fn panels_of(found: &Found) -> Vec<(&'static str, bool)> {
    let mut panels = Vec::new();
    for cell in &found.cells {
        let panel = (cell.setting.backend, cell.setting.huge_pages);
        if !panels.contains(&panel) {
            panels.push(panel);
        }
    }
    panels
}

fn len_of<T>(list: &[T]) -> i32 {
    // Axes have some entries, which were typed.
    i32::try_from(list.len()).unwrap_or(i32::MAX / 1024)
}

fn text_style(size: i32, color: &RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    let style = ("sans-serif", size).into_font().color(color);
    style.pos(Pos::new(h, v))
}

fn draw_block_labels(area: &Area<'_>, found: &Found) -> Drawn {
    for (row, block) in (0..).zip(&found.blocks) {
        let place = (LEFT - 8, TOP + row * CELL.1 + CELL.1 / 2);
        let style = text_style(12, &BLACK, HPos::Right, VPos::Center);
        area.draw_text(&exact(*block), &style, place)?;
    }
    Ok(())
}

fn draw_panel(
    area: &Area<'_>,
    found: &Found,
    kind: Kind,
    (backend, huge_pages): &(&'static str, bool),
    left: i32,
    range: (f64, f64),
) -> Drawn {
    let width = len_of(&found.depths) * CELL.0;
    let bottom = TOP + len_of(&found.blocks) * CELL.1;
    let pages = if *huge_pages {
        "huge pages"
    } else {
        "4 KiB pages"
    };
    let title = text_style(14, &BLACK, HPos::Center, VPos::Center);
    area.draw_text(
        &format!("{backend}, {pages}"),
        &title,
        (left + width / 2, TOP / 2),
    )?;
    for (column, depth) in (0..).zip(&found.depths) {
        let style = text_style(12, &BLACK, HPos::Center, VPos::Top);
        let place = (left + column * CELL.0 + CELL.0 / 2, bottom + 5);
        area.draw_text(&depth.to_string(), &style, place)?;
    }
    let style = text_style(12, &RGBColor(90, 90, 90), HPos::Center, VPos::Top);
    area.draw_text("queue depth", &style, (left + width / 2, bottom + 22))?;
    for (row, block_bytes) in (0..).zip(&found.blocks) {
        for (column, queue_depth) in (0..).zip(&found.depths) {
            let setting = Setting {
                backend,
                huge_pages: *huge_pages,
                block_bytes: *block_bytes,
                queue_depth: *queue_depth,
            };
            let cell = found.cells.iter().find(|cell| cell.setting == setting);
            if let Some(cell) = cell {
                let place = (left + column * CELL.0, TOP + row * CELL.1);
                draw_cell(area, cell, kind, place, range, setting == found.best)?;
            }
        }
    }
    Ok(())
}

fn draw_cell(
    area: &Area<'_>,
    cell: &Cell,
    kind: Kind,
    (x, y): (i32, i32),
    (lowest, highest): (f64, f64),
    is_best: bool,
) -> Drawn {
    let speed = cell.speed(kind);
    let share = ((speed - lowest) / (highest - lowest).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
    let color = ViridisRGB.get_color(share);
    let end = (x + CELL.0 - 1, y + CELL.1 - 1);
    area.draw(&Rectangle::new([(x, y), end], color.filled()))?;
    let ink = if share > 0.55 { BLACK } else { WHITE };
    let style = text_style(12, &ink, HPos::Center, VPos::Center);
    let label = format!("{:.2}", speed / GIB);
    area.draw_text(&label, &style, (x + CELL.0 / 2, y + CELL.1 / 2))?;
    if is_best {
        let frame = RGBColor(220, 30, 30).stroke_width(3);
        area.draw(&Rectangle::new([(x, y), end], frame))?;
    }
    Ok(())
}

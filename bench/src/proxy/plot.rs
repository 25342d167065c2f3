//! The plot of a run: for each scene the first two of its main figures, and in each a bar
//! for every contender, with the range over the rounds.

use crate::draw::{label, line, picture, rectangle, whisker};
use crate::proxy::plan::{Contender, Scene};
use crate::proxy::record::{Figure, Record};
use crate::proxy::report::{main_figures, number};

/// Widths and heights in pixels.
const WIDTH: f64 = 1100.0;
const TITLE: f64 = 44.0;
const COLUMNS: f64 = 2.0;
const NAMES: f64 = 150.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 14.0;
const STEP: f64 = 19.0;
const HEAD: f64 = 42.0;
const FOOT: f64 = 16.0;

/// Ours stands out; what is no relay stands back.
fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Rehome => "#d55e00",
        Contender::Routed => "#bbbbbb",
        Contender::HaproxySplice
        | Contender::Haproxy
        | Contender::HaproxyPaused
        | Contender::Nginx
        | Contender::Envoy
        | Contender::Systemd => "#56b4e9",
    }
}

/// Whether less of it is better.
fn is_cost(figure: Figure) -> bool {
    !matches!(figure, Figure::Gigabits | Figure::PerSecond)
}

/// Draws a run: a row for each scene, a column for each of its two figures.
#[must_use]
pub fn svg(record: &Record) -> String {
    let mut body = label(
        12.0,
        26.0,
        "start",
        16,
        "Relays of TCP connections (medians, ranges)",
    );
    let mut top = TITLE;
    for scene in record.scenes() {
        let mut left = 0.0;
        for figure in main_figures(scene).iter().take(2) {
            body += &panel(record, scene, *figure, (left, top));
            left += WIDTH / COLUMNS;
        }
        let bars = record.contenders(scene).iter().map(|_| STEP).sum::<f64>();
        top += HEAD + bars + FOOT;
    }
    picture(WIDTH, top, &body)
}

fn panel(record: &Record, scene: Scene, figure: Figure, (left, top): (f64, f64)) -> String {
    let better = if is_cost(figure) { "less" } else { "more" };
    let title = format!("{}: {} ({better} is better)", scene.title(), figure.title());
    let mut text = label(left + 12.0, top + 24.0, "start", 12, &title);
    let contenders = record.contenders(scene);
    let spreads = contenders
        .iter()
        .map(|contender| record.spread(scene, *contender, figure));
    let spreads: Vec<_> = spreads.collect();
    let ends = spreads.iter().flatten().map(|spread| spread.most);
    let most = ends.fold(0.0, f64::max);
    let begin = left + NAMES;
    // Below nothing there is no bar: a difference of two measurements can be.
    let x = |value: f64| {
        let share = if most > 0.0 {
            value.max(0.0) / most
        } else {
            0.0
        };
        begin + share * (WIDTH / COLUMNS - NAMES - VALUES)
    };
    let mut y = top + HEAD;
    for (contender, spread) in contenders.iter().zip(&spreads) {
        text += &label(begin - 6.0, y + 11.0, "end", 11, contender.title());
        let (end, words) = match spread {
            None => (begin, "–".to_owned()),
            Some(spread) => {
                let width = x(spread.median) - begin;
                text += &rectangle(begin, y, width, BAR, colour(*contender));
                if spread.least < spread.most {
                    text += &whisker(x(spread.least), x(spread.most), y + BAR / 2.0);
                }
                (x(spread.most), number(spread.median))
            }
        };
        text += &label(end + 6.0, y + 11.0, "start", 11, &words);
        y += STEP;
    }
    text + &line((begin, top + HEAD - 3.0), (begin, y), "#333333", 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::tests::attributes;
    use crate::proxy::report::tests::{SCENE, record};

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let svg = svg(&record());
        // The first panel: Gbit/s of ours, HAProxy, and the routed path, whose most is 12.
        let widths = attributes(&svg, "rect", "width");
        let scale = (WIDTH / COLUMNS - NAMES - VALUES) / 12.0;
        for (width, median) in widths.iter().skip(1).zip([5.0, 2.5, 10.0]) {
            assert!((width - median * scale).abs() < 0.1, "{width}, {median}");
        }
    }

    #[test]
    fn every_bar_is_in_the_picture() {
        let svg = svg(&record());
        let bottom = attributes(&svg, "svg", "height")[0];
        for (y, height) in attributes(&svg, "rect", "y")
            .iter()
            .zip(attributes(&svg, "rect", "height").iter().skip(1))
        {
            assert!(y + height <= bottom, "{y} + {height} > {bottom}");
        }
    }

    #[test]
    fn a_figure_that_nobody_has_leaves_an_empty_panel() {
        let mut record = record();
        for trial in &mut record.trials {
            trial.figures.remove(&Figure::Gigabits);
        }
        let panel = panel(&record, SCENE, Figure::Gigabits, (0.0, 0.0));
        assert!(attributes(&panel, "rect", "width").is_empty(), "{panel}");
        assert!(!panel.contains("NaN"), "{panel}");
    }
}

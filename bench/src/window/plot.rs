//! The plot of a run: a bar for each contender in each scene, cut into the parts of its window,
//! and beside it the gap that clients saw.

use crate::draw::{label, line, picture, range_mark, rectangle, ticks};
use crate::stats::Spread;
use crate::window::plan::{Contender, Kind, Scene};
use crate::window::record::{Part, Record};
use crate::window::report::part_of;

/// Widths and heights in pixels.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 120.0;
const BAR: f64 = 17.0;
const STEP: f64 = 23.0;
const GROUP_HEAD: f64 = 26.0;
const PANEL_HEAD: f64 = 40.0;
const PANEL_FOOT: f64 = 44.0;
const TITLE: f64 = 74.0;

/// One colour for each part, told apart by the colour-blind too (Okabe and Ito).
fn colour(part: Part) -> &'static str {
    match part {
        Part::Stop => "#e69f00",
        Part::Flush => "#f0e442",
        Part::Copy => "#0072b2",
        Part::Own => "#cc79a7",
        Part::Start => "#009e73",
        Part::Route => "#56b4e9",
        Part::Rest => "#999999",
    }
}

/// Draws a run.
#[must_use]
pub fn svg(record: &Record) -> String {
    let mut body = String::new();
    let mut top = TITLE;
    for store in record.stores() {
        let panel = Panel::new(record, store, top);
        top += panel.height();
        body += &panel.draw();
    }
    let title = label(
        LEFT,
        24.0,
        "start",
        16,
        "The window of a move, part by part (medians)",
    );
    picture(WIDTH, top, &(title + &legend() + &body))
}

fn legend() -> String {
    let mut text = String::new();
    let mut x = LEFT;
    let y = 48.0;
    for part in Part::ALL {
        text += &rectangle(x, y - 10.0, 12.0, 12.0, colour(part));
        text += &label(x + 17.0, y, "start", 12, part.title());
        x += 72.0;
    }
    text += &range_mark(x + 8.0, x + 20.0, x + 32.0, y - 4.0);
    text + &label(x + 40.0, y, "start", 12, "gap that clients saw (range)")
}

/// The bars of one store.
struct Panel<'a> {
    record: &'a Record,
    store: Kind,
    top: f64,
    scenes: Vec<Scene>,
    ticks: Vec<f64>,
}

impl<'a> Panel<'a> {
    fn new(record: &'a Record, store: Kind, top: f64) -> Self {
        let scenes = record.scenes(store);
        let ends = scenes.iter().flat_map(|scene| {
            let contenders = record.contenders(*scene).into_iter();
            contenders.flat_map(|contender| {
                let window = sum_of_parts(record, *scene, contender);
                [
                    window,
                    gap(record, *scene, contender).map_or(0.0, |gap| gap.most),
                ]
            })
        });
        let ticks = ticks(ends.fold(0.0, f64::max));
        Self {
            record,
            store,
            top,
            scenes,
            ticks,
        }
    }

    fn height(&self) -> f64 {
        let groups = self.scenes.iter().map(|scene| self.group_height(*scene));
        PANEL_HEAD + groups.sum::<f64>() + PANEL_FOOT
    }

    fn group_height(&self, scene: Scene) -> f64 {
        let bars = self
            .record
            .contenders(scene)
            .iter()
            .map(|_| STEP)
            .sum::<f64>();
        GROUP_HEAD + bars
    }

    /// Where a time lies.
    fn x(&self, seconds: f64) -> f64 {
        let most = self.ticks.last().copied().unwrap_or(1.0);
        LEFT + seconds / most * (WIDTH - LEFT - RIGHT)
    }

    fn draw(&self) -> String {
        let mut text = label(LEFT, self.top + 22.0, "start", 14, self.store.title());
        let bottom = self.top + self.height() - PANEL_FOOT;
        text += &self.axis(bottom);
        let mut y = self.top + PANEL_HEAD;
        for scene in &self.scenes {
            let title = format!(
                "{} MiB, {} MiB overwritten per second",
                scene.size, scene.rate
            );
            text += &label(LEFT + 4.0, y + 16.0, "start", 12, &title);
            y += GROUP_HEAD;
            for contender in self.record.contenders(*scene) {
                text += &self.bar(*scene, contender, y);
                y += STEP;
            }
        }
        text
    }

    fn axis(&self, bottom: f64) -> String {
        let mut text = String::new();
        let top = self.top + PANEL_HEAD;
        for tick in &self.ticks {
            let x = self.x(*tick);
            text += &line((x, top), (x, bottom), "#dddddd", 1.0);
            text += &label(x, bottom + 16.0, "middle", 11, &format!("{tick} s"));
        }
        text + &line((LEFT, top), (LEFT, bottom), "#333333", 1.0)
    }

    fn bar(&self, scene: Scene, contender: Contender, y: f64) -> String {
        let mut text = label(LEFT - 8.0, y + 13.0, "end", 12, contender.title());
        let mut from = 0.0;
        for part in Part::ALL {
            let spread = self
                .record
                .spread(scene, contender, |trial| part_of(trial, part));
            let to = from + spread.map_or(0.0, |spread| spread.median);
            if to > from {
                let width = self.x(to) - self.x(from);
                text += &rectangle(self.x(from), y, width, BAR, colour(part));
            }
            from = to;
        }
        let gap = gap(self.record, scene, contender);
        let mut end = from;
        if let Some(gap) = gap {
            let (least, median, most) = (self.x(gap.least), self.x(gap.median), self.x(gap.most));
            text += &range_mark(least, median, most, y + BAR / 2.0);
            end = end.max(gap.most);
        }
        text + &label(
            self.x(end) + 8.0,
            y + 13.0,
            "start",
            11,
            &self.ratio(scene, gap),
        )
    }

    /// The gap in figures, and how many times Rehome's it is.
    fn ratio(&self, scene: Scene, own: Option<Spread>) -> String {
        let Some(own) = own else {
            return "called off".to_owned();
        };
        let rehome = gap(self.record, scene, Contender::Rehome);
        let times = rehome.and_then(|rehome| own.times(&rehome));
        let times = times.map_or(String::new(), |times| format!(" (×{times:.1})"));
        format!("{:.2} s{times}", own.median)
    }
}

fn gap(record: &Record, scene: Scene, contender: Contender) -> Option<Spread> {
    record.spread(scene, contender, |trial| trial.seen.gap)
}

fn sum_of_parts(record: &Record, scene: Scene, contender: Contender) -> f64 {
    let medians = Part::ALL.iter().filter_map(|part| {
        let spread = record.spread(scene, contender, |trial| part_of(trial, *part))?;
        Some(spread.median)
    });
    medians.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::tests::attributes;
    use crate::window::report::tests::record;

    #[test]
    fn bars_are_as_long_as_their_parts_and_stay_in_the_picture() {
        let svg = svg(&record());
        let widths = attributes(&svg, "rect", "width");
        let longest = widths.iter().skip(1).copied().fold(0.0, f64::max);
        // The medians: 0.5 s of Rehome, four times that by hand, three quarters of it to copy; the
        // axis ends at 4.5 s, the longest gap.
        let expected = 1.5 / 4.5 * (WIDTH - LEFT - RIGHT);
        assert!((longest - expected).abs() < 0.2, "{longest}, {expected}");
        let bottom = attributes(&svg, "svg", "height")[0];
        for (y, height) in attributes(&svg, "rect", "y")
            .iter()
            .zip(attributes(&svg, "rect", "height").iter().skip(1))
        {
            assert!(y + height <= bottom, "{y} + {height} > {bottom}");
        }
        assert!(svg.contains("2.50 s (×2.5)"), "{svg}");
    }

    #[test]
    fn a_contender_whose_moves_were_all_called_off_has_no_bar() {
        let mut record = record();
        for trial in &mut record.trials {
            if trial.contender == Contender::Send {
                trial.moved.failure = Some("no".to_owned());
            }
        }
        assert!(svg(&record).contains(">called off<"));
    }
}

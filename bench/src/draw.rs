//! What a plot is drawn of, as SVG.

/// A picture of a size, with a white ground.
#[must_use]
pub fn picture(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// The marks of an axis from nothing to at least `most`, at round distances: not more than ten.
#[must_use]
pub fn ticks(most: f64) -> Vec<f64> {
    const STEPS: [f64; 12] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
    ];
    let fits = |step: &&f64| **step * 9.0 >= most;
    let step = STEPS.iter().find(fits).copied().unwrap_or(1000.0);
    let mut ticks = vec![0.0];
    for number in 1..=10 {
        let before = step * f64::from(number - 1);
        if before >= most && number > 1 {
            break;
        }
        // Without the last digits that a product of fractions has.
        ticks.push((step * f64::from(number) * 1000.0).round() / 1000.0);
    }
    ticks
}

/// Words at a place.
#[must_use]
pub fn label(x: f64, y: f64, anchor: &str, size: u32, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>\n",
        escape(words)
    )
}

/// A filled rectangle.
#[must_use]
pub fn rectangle(x: f64, y: f64, width: f64, height: f64, fill: &str) -> String {
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{fill}\"/>\n"
    )
}

/// A line.
#[must_use]
pub fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
         stroke=\"{colour}\" stroke-width=\"{width}\"/>\n"
    )
}

/// A line over a range, with its ends.
#[must_use]
pub fn whisker(least: f64, most: f64, y: f64) -> String {
    let mut text = line((least, y), (most, y), "#000000", 1.5);
    for end in [least, most] {
        text += &line((end, y - 4.0), (end, y + 4.0), "#000000", 1.5);
    }
    text
}

/// A diamond at the median and a line over the range.
#[must_use]
pub fn range_mark(least: f64, median: f64, most: f64, y: f64) -> String {
    let text = whisker(least, most, y);
    let (left, right, up, down) = (median - 5.0, median + 5.0, y - 5.0, y + 5.0);
    let diamond = format!(
        "<path d=\"M{left:.1} {y:.1} L{median:.1} {up:.1} L{right:.1} {y:.1} \
         L{median:.1} {down:.1} Z\" fill=\"white\" stroke=\"black\" stroke-width=\"1.5\"/>\n"
    );
    text + &diamond
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The values of an attribute of all elements of a kind.
    pub(crate) fn attributes(svg: &str, element: &str, name: &str) -> Vec<f64> {
        let begin = format!("<{element} ");
        let lines = svg.lines().filter(|line| line.starts_with(&begin));
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\""))?;
            rest.split('"').next()?.parse().ok()
        };
        lines.filter_map(value).collect()
    }

    #[test]
    fn an_axis_reaches_over_what_is_on_it_with_few_round_marks() {
        assert_eq!(ticks(0.55), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        assert_eq!(
            ticks(4.2),
            [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
        );
        for most in [0.0, 0.01, 0.9, 1.0, 3.7, 9.0, 60.0, 4000.0] {
            let ticks = ticks(most);
            assert!(ticks.len() >= 2 && ticks.len() <= 11, "{most}: {ticks:?}");
            assert!(*ticks.last().unwrap() >= most, "{most}: {ticks:?}");
        }
    }

    #[test]
    fn words_cannot_break_the_picture() {
        assert_eq!(escape("a < b & c > d"), "a &lt; b &amp; c &gt; d");
    }

    #[test]
    fn a_picture_is_as_large_as_its_ground() {
        let svg = picture(300.0, 200.0, &rectangle(1.0, 2.0, 3.0, 4.0, "red"));
        assert_eq!(attributes(&svg, "rect", "width"), [300.0, 3.0]);
        assert_eq!(attributes(&svg, "svg", "height"), [200.0]);
    }
}

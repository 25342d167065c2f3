//! The text that Prometheus and `promtool` read.
//!
//! The library writes OpenMetrics, in which a counter's family has no `_total`, and which knows
//! types, `# UNIT` and `# EOF` lines that the older text format does not. Every scraper reads
//! the older one, so the headers are rewritten. Sample lines are the same in both, as long as
//! there are no exemplars; Rehome uses none.

/// What `/metrics` declares.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Rewrites the headers of an OpenMetrics text.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            write_header(&mut out, name, kind, help.take());
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn write_header(out: &mut String, name: &str, kind: &str, help: Option<(&str, &str)>) {
    let (suffix, kind) = match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "stateset" => ("", "gauge"),
        "gauge" | "histogram" | "summary" => ("", kind),
        _ => ("", "untyped"),
    };
    if let Some((helped, text)) = help
        && helped == name
    {
        out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
    }
    out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
}

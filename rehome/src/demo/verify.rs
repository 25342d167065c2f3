//! After the load: whether all that was acknowledged is there, once, and can be found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::load::{Kind, Record, Targets, page, tokens_in};
use crate::stop::Stop;

/// How long the receiver may take to write what it holds into the store.
const SETTLING: Duration = Duration::from_mins(1);

/// How many lines are looked for on the page of every host.
const SAMPLES: usize = 5;

/// What the store holds, against what was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Verdict {
    /// Lines that were acknowledged.
    pub(super) acknowledged: usize,
    /// Those that are not there.
    pub(super) missing: Vec<String>,
    /// Lines that are there more than once.
    pub(super) repeated: Vec<String>,
    /// Lines that nobody sent.
    pub(super) unknown: Vec<String>,
    /// What the pages do not show.
    pub(super) pages: Vec<String>,
}

impl Verdict {
    /// Every problem, for people.
    pub(super) fn problems(&self) -> Vec<String> {
        let lists = [
            ("acknowledged and not there", &self.missing),
            ("there more than once", &self.repeated),
            ("there and never sent", &self.unknown),
        ];
        let lists = lists.into_iter().filter(|(_, tokens)| !tokens.is_empty());
        lists
            .map(|(what, tokens)| {
                let some: Vec<_> = tokens.iter().take(5).map(String::as_str).collect();
                format!("{} {what}: {} …", tokens.len(), some.join(", "))
            })
            .chain(self.pages.iter().cloned())
            .collect()
    }
}

/// Looks until everything is there, or the time is up.
pub(super) fn check(record: &Record, targets: &Targets, stop: &Stop) -> anyhow::Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let deadline = Instant::now() + SETTLING;
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        let mut verdict = loop {
            pause.tick().await;
            let verdict = compare(record, &stored(targets).await?);
            if verdict.missing.is_empty() || Instant::now() >= deadline || stop.is_set() {
                break verdict;
            }
        };
        verdict.pages = pages(record, targets).await;
        Ok(verdict)
    })
}

async fn stored(targets: &Targets) -> anyhow::Result<Vec<String>> {
    let Some(at) = targets.each(Kind::Write).last() else {
        anyhow::bail!("there are no hosts");
    };
    Ok(tokio::time::timeout(SETTLING, tokens_in(at)).await??)
}

/// Compares what was acknowledged with the tokens of the lines in the store.
fn compare(record: &Record, stored: &[String]) -> Verdict {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for token in stored {
        *times.entry(token).or_default() += 1;
    }
    let owned = |token: &str| token.to_owned();
    let found: BTreeSet<&str> = times.keys().copied().collect();
    let repeated = times.iter().filter(|(_, times)| **times > 1);
    Verdict {
        acknowledged: record.acknowledged.len(),
        missing: record
            .acknowledged
            .iter()
            .filter(|token| !found.contains(token.as_str()))
            .cloned()
            .collect(),
        repeated: repeated.map(|(token, _)| owned(token)).collect(),
        unknown: found
            .iter()
            .filter(|token| !record.sent.contains(**token))
            .map(|token| owned(token))
            .collect(),
        pages: Vec::new(),
    }
}

/// Looks for some of the lines on every host's page.
async fn pages(record: &Record, targets: &Targets) -> Vec<String> {
    let mut problems = Vec::new();
    for at in targets.each(Kind::Page) {
        for token in sample(&record.acknowledged) {
            let looked = tokio::time::timeout(SETTLING, page(at, token)).await;
            let problem = match looked {
                Ok(Ok(())) => continue,
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            problems.push(format!("page of {}: {token}: {problem}", at.ip()));
        }
    }
    problems
}

/// Some of the tokens, spread over all of them, the last one included.
fn sample(tokens: &BTreeSet<String>) -> impl Iterator<Item = &String> {
    let step = tokens.len().div_ceil(SAMPLES).max(1);
    tokens.iter().rev().step_by(step)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn tokens(list: &[&str]) -> Vec<String> {
        list.iter().map(|&token| token.to_owned()).collect()
    }

    fn record(sent: &[&str], acknowledged: &[&str]) -> Record {
        Record {
            began: SystemTime::UNIX_EPOCH,
            requests: Vec::new(),
            sent: tokens(sent).into_iter().collect(),
            acknowledged: tokens(acknowledged).into_iter().collect(),
        }
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_or_not() {
        let record = record(&["log1", "log2", "log3"], &["log1"]);
        for stored in [&["log1"][..], &["log1", "log2"]] {
            let verdict = compare(&record, &tokens(stored));
            assert_eq!(verdict.problems(), Vec::<String>::new());
        }
    }

    #[test]
    fn missing_repeated_and_unknown_lines_are_told() {
        let record = record(&["log1", "log2", "log3"], &["log1", "log2"]);
        let verdict = compare(&record, &tokens(&["log2", "log2", "log9"]));
        assert_eq!(verdict.missing, ["log1"]);
        assert_eq!(verdict.repeated, ["log2"]);
        assert_eq!(verdict.unknown, ["log9"]);
        assert_eq!(verdict.problems().len(), 3);
    }

    #[test]
    fn a_sample_is_small_and_has_the_last_one() {
        let many: BTreeSet<String> = (0..1000).map(|n| format!("log{n:06}")).collect();
        let some: Vec<_> = sample(&many).collect();
        assert_eq!(some.len(), SAMPLES);
        assert_eq!(some.first().map(|token| token.as_str()), Some("log000999"));
        assert_eq!(sample(&BTreeSet::new()).count(), 0);
    }
}

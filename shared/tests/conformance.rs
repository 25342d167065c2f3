//! Every configuration case of the contract: its meaning exactly, or its refusal with a place.

use rehome_shared::config::meaning::meaning;
use rehome_shared::config::{Problem, Source, load};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    group: String,
    expect: String,
    #[serde(default)]
    application: Option<Value>,
    application_yaml: Option<String>,
    #[serde(default)]
    deployment: Option<Value>,
    deployment_yaml: Option<String>,
    meaning: Option<Value>,
    error_about: Option<String>,
    warning_about: Option<String>,
}

fn cases() -> Result<Vec<Case>, serde_json::Error> {
    serde_json::from_str(include_str!("data/config_cases.json"))
}

/// The text of a file: JSON is YAML, so a case's value is written as JSON.
fn text(value: Option<&Value>, yaml: Option<&String>) -> Option<String> {
    // `Value` prints itself as JSON.
    yaml.cloned().or_else(|| value.map(|v| format!("{v:#}")))
}

impl Case {
    fn run(&self) -> Result<Value, Vec<Problem>> {
        let application =
            text(self.application.as_ref(), self.application_yaml.as_ref()).unwrap_or_default();
        let deployment = text(self.deployment.as_ref(), self.deployment_yaml.as_ref())
            // A deployment case without a deployment is the one with an empty file.
            .or_else(|| (self.group == "deployment").then(String::new));
        let application = Source::new("application.yml", application);
        let deployment = deployment.map(|text| Source::new("deployment.yml", text));
        load(&application, deployment.as_ref()).map(|loaded| meaning(&loaded))
    }

    fn complaint(&self) -> Option<String> {
        match (self.expect.as_str(), self.run()) {
            ("ok", Ok(got)) => self.complaint_about_meaning(got),
            ("ok", Err(problems)) => Some(format!("refused: {problems:#?}")),
            ("error", Ok(got)) => Some(format!("accepted: {got:#}")),
            ("error", Err(problems)) => complaint_about_problems(&problems),
            (other, _) => Some(format!("unknown expectation {other:?}")),
        }
    }

    fn complaint_about_meaning(&self, got: Value) -> Option<String> {
        let Value::Object(mut got) = got else {
            return Some("not an object".to_owned());
        };
        let warnings = got.remove("warnings")?;
        let want = self
            .meaning
            .as_ref()
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_else(Map::new);
        if got != want {
            return Some(format!(
                "want {:#}\ngot {:#}",
                Value::Object(want),
                Value::Object(got)
            ));
        }
        let warned = warnings.as_array().is_some_and(|list| !list.is_empty());
        (self.warning_about.is_some() && !warned).then(|| "no warning".to_owned())
    }
}

fn complaint_about_problems(problems: &[Problem]) -> Option<String> {
    if problems.is_empty() {
        return Some("refused without a problem".to_owned());
    }
    problems
        .iter()
        .find(|p| p.line == 0 || p.message.is_empty() || p.cure.is_empty() || p.file.is_empty())
        .map(|p| format!("a problem without place or cure: {p:?}"))
}

#[test]
fn every_case_of_the_contract_gets_its_result() -> Result<(), serde_json::Error> {
    let cases = cases()?;
    assert!(cases.len() >= 148, "only {} cases", cases.len());
    let complaints: Vec<String> = cases
        .iter()
        .filter_map(|case| case.complaint().map(|why| format!("{}: {why}", case.name)))
        .collect();
    assert!(
        complaints.is_empty(),
        "{} of {}:\n{}",
        complaints.len(),
        cases.len(),
        complaints.join("\n")
    );
    Ok(())
}

/// What an error case is about shows in the problems: one of its words stands in
/// the path, the message or the cure. The quirks are notes about another program, not messages.
#[test]
fn problems_are_about_what_is_wrong() -> Result<(), serde_json::Error> {
    let notes = [
        "quirk",
        "accepted",
        "no range check",
        "silently wins",
        "in Python",
        "coerced",
        "pass as",
        "accepts",
    ];
    let mut missed = Vec::new();
    for case in cases()?.iter().filter(|case| case.expect == "error") {
        let about = case.error_about.clone().unwrap_or_default();
        if notes.iter().any(|note| about.contains(note)) {
            continue;
        }
        let problems = case.run().expect_err("an error case");
        let said = problems
            .iter()
            .map(|p| format!("{p}\n").to_lowercase())
            .collect::<String>();
        let words = about.to_lowercase();
        let mut words = words
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| w.len() > 2 && !["the", "and", "must", "not"].contains(w));
        if !words.any(|word| said.contains(word.trim_end_matches('s'))) {
            missed.push(format!("{}: {about:?} but said {said}", case.name));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

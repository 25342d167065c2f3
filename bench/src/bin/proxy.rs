//! `proxy`: measures relays of TCP connections beside each other, and writes a table and a plot.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum as _};
use rehome_bench::machine::Machine;
use rehome_bench::proxy::contender::{Places, Programs};
use rehome_bench::proxy::plan::{Contender, Plan, idle_within, scenes};
use rehome_bench::proxy::processors::Processors;
use rehome_bench::proxy::record::Record;
use rehome_bench::proxy::trial::descriptors;
use rehome_bench::proxy::{meter, plot, report, role, run};

/// How long the machine is looked at before a run.
const LOOK: Duration = Duration::from_secs(3);
/// The share of it that may be busy with something else.
const QUIET: f64 = 0.1;

/// Lets connections pass through several relays, in one run, and compares what each costs.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
struct Options {
    /// One short round, into target/bench: shows that everything works.
    #[arg(long)]
    quick: bool,
    /// How often everything is done [default: 5]
    #[arg(long)]
    rounds: Option<u32>,
    /// How long everything is measured [default: 4]
    #[arg(long)]
    seconds: Option<f64>,
    /// Begin no round that would probably end later
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    minutes: u64,
    /// Connections that are idle at once, at most; two descriptors each must be had
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 5000)]
    idle: u32,
    /// The contenders [default: all]
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Words of the names of scenes [default: all]
    #[arg(long, value_delimiter = ',')]
    scenes: Vec<String>,
    /// Let everybody use all processors
    #[arg(long)]
    unpinned: bool,
    /// Measure although the machine is busy. --quick does
    #[arg(long)]
    busy: bool,
    #[command(flatten)]
    places: Places,
    /// Where the results go [default: bench/results]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Only write table and plot of the proxy.json that is there
    #[arg(long)]
    render: bool,
    #[command(subcommand)]
    inner: Option<Inner>,
}

/// How the command runs itself again.
#[derive(Debug, Subcommand)]
enum Inner {
    /// Plays a part in a trial.
    #[command(name = role::WORD, hide = true)]
    Role {
        /// Which, in JSON.
        role: String,
    },
}

impl Options {
    fn plan(&self, contenders: Vec<Contender>) -> Plan {
        let (rounds, seconds) = if self.quick { (1, 1.5) } else { (5, 4.0) };
        let idle = idle_within(descriptors(), self.idle);
        Plan {
            contenders,
            scenes: run::chosen(scenes(idle), &self.scenes),
            rounds: self.rounds.unwrap_or(rounds),
            seconds: self.seconds.unwrap_or(seconds),
            limit: Duration::from_secs(self.minutes.saturating_mul(60)),
        }
    }

    fn out(&self) -> anyhow::Result<PathBuf> {
        let top = rehome_tests::project()?;
        Ok(match &self.out {
            Some(out) => out.clone(),
            None if self.quick => top.join("target/bench"),
            None => top.join("bench/results"),
        })
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.inner {
        Some(Inner::Role { role }) => role::play(role),
        None => measure(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let out = options.out()?;
    std::fs::create_dir_all(&out)?;
    let kept = out.join("proxy.json");
    if options.render {
        let text = std::fs::read_to_string(&kept).context("no run is recorded")?;
        return render(&serde_json::from_str(&text)?, &out);
    }
    let programs = Programs::here(&options.places)?;
    let wanted = match options.contenders.as_slice() {
        [] => Contender::value_variants(),
        some => some,
    };
    let (present, mut notes) = run::present(wanted, &programs);
    for note in &notes {
        say(note);
    }
    let plan = options.plan(present);
    ensure!(!plan.scenes.is_empty(), "no scene has such a name");
    let processors = Processors::here(!options.unpinned)?;
    notes.insert(0, processors.note());
    notes.insert(1, quiet(options.busy || options.quick)?);
    let mut machine = Machine::here(&[]);
    machine.versions = programs.versions();
    let mut record = Record {
        machine,
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        seconds: 0.0,
        notes,
        trials: Vec::new(),
    };
    let began = Instant::now();
    let done = run::run(&plan, &programs, &processors, &say, &mut |trial| {
        record.trials.push(trial);
        record.seconds = began.elapsed().as_secs_f64();
        // After each trial: a run that is ended early has what it measured.
        let text = serde_json::to_string_pretty(&record)?;
        Ok(std::fs::write(&kept, text + "\n")?)
    });
    render(&record, &out)?;
    done
}

/// How busy the machine is without this run: too busy to measure anything, if nobody insists.
fn quiet(insists: bool) -> anyhow::Result<String> {
    let busy = meter::busy(LOOK)?;
    let note = format!(
        "the machine was {:.0} % busy in the {} s before the run",
        busy * 100.0,
        LOOK.as_secs()
    );
    if busy > QUIET {
        ensure!(insists, "{note}: measure when it is idle, or with --busy");
        say(&format!("{note}: what follows shows little"));
    }
    Ok(note)
}

fn render(record: &Record, out: &Path) -> anyhow::Result<()> {
    std::fs::write(out.join("proxy.md"), report::markdown(record))?;
    std::fs::write(out.join("proxy.svg"), plot::svg(record))?;
    say(&format!("see {}", out.join("proxy.md").display()));
    Ok(())
}

/// Tells a person how far it is. A terminal that is gone does not end a measurement.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

//! `window`: measures the window of a move, part by part, beside what a user would build by hand,
//! and writes a table and a plot.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use rehome_bench::machine::{self, Machine, Program};
use rehome_bench::window::plan::{Contender, Disks, Kind, Plan};
use rehome_bench::window::record::Record;
use rehome_bench::window::{plot, report, run};

/// PostgreSQL's own version is that of an image, from the same packages as its client.
const PROGRAMS: [Program<'_>; 6] = [
    ("redis-server", &["--version"]),
    ("psql", &["--version"]),
    ("haproxy", &["-v"]),
    ("btrfs", &["--version"]),
    ("rsync", &["--version"]),
    ("docker", &["--version"]),
];

/// Moves stores between lab hosts in several ways, in one run, and compares the windows.
#[derive(Debug, Parser)]
struct Options {
    /// One repetition on small volumes, into target/bench: shows that everything works.
    #[arg(long)]
    quick: bool,
    /// How often everything is done [default: 3]
    #[arg(long)]
    repetitions: Option<u32>,
    /// Begin no repetition that would probably end later
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    /// MiB in a volume [default: 256]
    #[arg(long)]
    size: Option<u32>,
    /// MiB in the volume of one more scene, at 10 MiB/s
    #[arg(long, value_name = "SIZE")]
    large: Option<u32>,
    /// MiB overwritten per second
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 100])]
    rates: Vec<u32>,
    /// The stores [default: all]
    #[arg(long, value_delimiter = ',')]
    stores: Vec<Kind>,
    /// The contenders [default: all]
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Where the hosts' disks are. One disk for all of them is none that hosts have.
    #[arg(long, value_enum, default_value = "memory")]
    disks: Disks,
    /// Where the results go [default: bench/results]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Only write table and plot of the window.json that is there
    #[arg(long)]
    render: bool,
}

impl Options {
    fn plan(&self) -> Plan {
        let (repetitions, size) = if self.quick { (1, 64) } else { (3, 256) };
        Plan {
            stores: all_unless(&self.stores),
            contenders: all_unless(&self.contenders),
            rates: self.rates.clone(),
            size: self.size.unwrap_or(size),
            large: self.large,
            disks: self.disks,
            repetitions: self.repetitions.unwrap_or(repetitions),
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

fn all_unless<T: ValueEnum + Clone>(some: &[T]) -> Vec<T> {
    let all = if some.is_empty() {
        T::value_variants()
    } else {
        some
    };
    all.to_vec()
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
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
    let kept = out.join("window.json");
    if options.render {
        let text = std::fs::read_to_string(&kept).context("no run is recorded")?;
        return render(&serde_json::from_str(&text)?, &out);
    }
    let began = Instant::now();
    let mut record = Record {
        machine: Machine {
            disk: disk(options.disks),
            ..Machine::here(&PROGRAMS)
        },
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        seconds: 0.0,
        trials: Vec::new(),
    };
    let done = run::run(&options.plan(), &say, &mut |trial| {
        record.trials.push(trial);
        record.seconds = began.elapsed().as_secs_f64();
        // After each move: a run that is ended early has what it measured.
        let text = serde_json::to_string_pretty(&record)?;
        Ok(std::fs::write(&kept, text + "\n")?)
    });
    render(&record, &out)?;
    done
}

/// Where the files of the pools are.
fn disk(disks: Disks) -> String {
    match disks {
        Disks::Memory => "memory (tmpfs)".to_owned(),
        Disks::Files => machine::said("findmnt", &["-no", "FSTYPE,SOURCE", "-T", "/var/lib"]),
    }
}

fn render(record: &Record, out: &Path) -> anyhow::Result<()> {
    std::fs::write(out.join("window.md"), report::markdown(record))?;
    std::fs::write(out.join("window.svg"), plot::svg(record))?;
    say(&format!("see {}", out.join("window.md").display()));
    Ok(())
}

/// Tells a person how far it is. A terminal that is gone does not end a measurement.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

//! `svadev-fuzz`: runs targets on random changes of their corpora. `docs/fuzzing.md` says what they check.
//!
//! Exit status: 0 clean, 1 an input failed, 2 wrong use.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for a terminal")]
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use svadev_fuzz::alloc::Counting;
use svadev_fuzz::{TARGETS, Target, corpus, minimize, mutate};
use svadev_sim::rng::Rng;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A run that takes longer is a finding, too: every target bounds its work.
const HANG: Duration = Duration::from_secs(20);

/// Feed changed inputs to the code behind each surface, and report what breaks an invariant.
#[derive(Parser)]
struct Arguments {
    /// Run this target only.
    #[arg(long, value_parser = |name: &str| Target::find(name).ok_or_else(names))]
    target: Option<&'static Target>,
    /// How long to run each target, seconds.
    #[arg(long, default_value_t = 10, conflicts_with = "runs")]
    seconds: u64,
    /// How many inputs to run for each target, instead of a time.
    #[arg(long)]
    runs: Option<u64>,
    /// Where chance starts; a run count and a seed give the same inputs again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// More inputs to start from, beside the kept corpus.
    #[arg(long, value_name = "FOLDER")]
    corpus: Option<PathBuf>,
    /// Run these inputs once each, and nothing else.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "target", conflicts_with_all = ["minimize", "seed_corpus"])]
    replay: Vec<PathBuf>,
    /// Make a failing input smaller; the result is written beside it.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seed_corpus")]
    minimize: Option<PathBuf>,
    /// Write the seeds into the kept corpora.
    #[arg(long)]
    seed_corpus: bool,
    /// Where failing inputs are written.
    #[arg(long, value_name = "FOLDER", default_value = "target/fuzz")]
    findings: PathBuf,
}

fn names() -> String {
    let names: Vec<_> = TARGETS.iter().map(|target| format!("{}: {}", target.name, target.about)).collect();
    format!("the targets are\n  {}", names.join("\n  "))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let targets: Vec<&'static Target> =
        arguments.target.map_or_else(|| TARGETS.iter().collect(), |target| vec![target]);
    let outcome = match (&arguments.minimize, arguments.target) {
        (Some(file), Some(target)) => minimize_file(target, file),
        _ if arguments.seed_corpus => {
            targets.iter().try_for_each(|target| corpus::write_seeds(target, &corpus::folder(target))).map(|()| true)
        }
        (None, Some(target)) if !arguments.replay.is_empty() => replay(target, &arguments.replay),
        _ => fuzz(&targets, &arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn fuzz(targets: &[&'static Target], arguments: &Arguments) -> io::Result<bool> {
    let mut clean = true;
    for target in targets {
        let mut kept = corpus::load(&corpus::folder(target))?;
        if let Some(more) = &arguments.corpus {
            kept.extend(corpus::load(more)?);
        }
        let mut inputs: Vec<Vec<u8>> = kept.into_iter().map(|(_, data)| data).collect();
        inputs.extend((target.seeds)().into_iter().map(|(_, data)| data));
        clean &= run_target(target, &inputs, arguments)?;
    }
    Ok(clean)
}

/// Runs one target until its time is over or an input fails.
fn run_target(target: &'static Target, inputs: &[Vec<u8>], arguments: &Arguments) -> io::Result<bool> {
    let watched = watch(target, &arguments.findings);
    let mut rng = Rng::new(arguments.seed);
    let begin = Instant::now();
    let until = Duration::from_secs(arguments.seconds);
    let mut runs = 0;
    let go_on = |runs: u64| match arguments.runs {
        Some(limit) => runs < limit,
        None => begin.elapsed() < until,
    };
    while go_on(runs) {
        // The kept inputs first.
        let data = match usize::try_from(runs).ok().and_then(|n| inputs.get(n)) {
            Some(kept) => kept.clone(),
            None => mutate::mutate(inputs, &mut rng),
        };
        *watched.lock().expect("nobody panics while holding it") = Some((Instant::now(), data.clone()));
        if catch_unwind(AssertUnwindSafe(|| target.check(&data))).is_err() {
            println!("{}: run {} fails", target.name, runs + 1);
            report(target, &write_finding(target, &arguments.findings, "crash", &data)?);
            return Ok(false);
        }
        runs += 1;
    }
    *watched.lock().expect("nobody panics while holding it") = None;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}: {runs} runs in {seconds:.1} s, clean", target.name);
    Ok(true)
}

/// What is being run, and since when.
type Running = Arc<Mutex<Option<(Instant, Vec<u8>)>>>;

/// Ends the process, input written, when a run takes too long.
fn watch(target: &'static Target, findings: &Path) -> Running {
    let running: Running = Arc::default();
    let (seen, findings) = (Arc::downgrade(&running), findings.to_owned());
    thread::spawn(move || {
        while let Some(running) = seen.upgrade() {
            if let Some((since, data)) = &*running.lock().expect("nobody panics while holding it")
                && since.elapsed() > HANG
            {
                eprintln!("{}: one run takes longer than {} s", target.name, HANG.as_secs());
                match write_finding(target, &findings, "hang", data) {
                    Ok(file) => report(target, &file),
                    Err(error) => eprintln!("error: {error}"),
                }
                std::process::exit(1);
            }
            drop(running);
            thread::sleep(Duration::from_millis(500));
        }
    });
    running
}

fn write_finding(target: &Target, folder: &Path, kind: &str, data: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    // FNV-1a: the same input gets the same name.
    let hash = data
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let file = folder.join(format!("{}-{kind}-{hash:016x}", target.name));
    fs::write(&file, data)?;
    Ok(file)
}

fn report(target: &Target, file: &Path) {
    let (name, file) = (target.name, file.display());
    eprintln!("replay: cargo run --release -p svadev-fuzz -- --target {name} --replay {file}");
    eprintln!("shorten: cargo run --release -p svadev-fuzz -- --target {name} --minimize {file}");
}

fn replay(target: &Target, files: &[PathBuf]) -> io::Result<bool> {
    let mut clean = true;
    for file in files {
        let data = fs::read(file)?;
        let passed = catch_unwind(AssertUnwindSafe(|| target.check(&data))).is_ok();
        println!("{}: {}", file.display(), if passed { "clean" } else { "fails" });
        clean &= passed;
    }
    Ok(clean)
}

/// Where the last panic was: a shorter input must fail there, too.
static PLACE: Mutex<Option<String>> = Mutex::new(None);

fn minimize_file(target: &Target, file: &Path) -> io::Result<bool> {
    let data = fs::read(file)?;
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        *PLACE.lock().expect("nobody panics while holding it") = info.location().map(ToString::to_string);
    }));
    let place = |data: &[u8]| {
        let failed = catch_unwind(AssertUnwindSafe(|| target.check(data))).is_err();
        let place = PLACE.lock().expect("nobody panics while holding it").take();
        failed.then_some(place).flatten()
    };
    let Some(original) = place(&data) else {
        println!("{} does not fail", file.display());
        return Ok(false);
    };
    let small = minimize::minimize(&data, |data| place(data).as_ref() == Some(&original));
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let to = file.with_file_name(format!("{name}-small"));
    fs::write(&to, &small)?;
    println!("{} bytes instead of {}, failing at {original}: {}", small.len(), data.len(), to.display());
    Ok(true)
}

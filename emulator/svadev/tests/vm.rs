//! The built `svadev` with real QEMUs and real guests: what it prints, what it returns, and that nothing stays behind.
//!
//! These tests need the kit; the first run sets it up. They run one at a time: each guest wants the whole machine.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod harness;

use std::time::Duration;

use harness::{Svadev, stderr_of, stdout_of};
use nix::sys::signal::Signal;

#[test]
fn the_smoke_suite_passes_with_five_levels_on_two_cpus() {
    suite_passes(&["--cpus", "2", "--levels", "5"]);
}

#[test]
fn the_smoke_suite_passes_with_four_levels_on_one_cpu() {
    suite_passes(&["--cpus", "1", "--levels", "4"]);
}

#[test]
fn the_smoke_suite_passes_with_two_engines_a_function() {
    suite_passes(&["--topology", concat!(env!("CARGO_MANIFEST_DIR"), "/../../qemu-configs/two-engines.toml")]);
}

#[test]
fn the_smoke_suite_passes_with_two_units_that_are_not_alike() {
    suite_passes(&["--topology", concat!(env!("CARGO_MANIFEST_DIR"), "/../../qemu-configs/two-units.toml")]);
}

#[test]
fn without_page_requests_only_what_needs_page_faults_is_skipped() {
    let results = tempfile::NamedTempFile::new().unwrap();
    let file = results.path().to_str().unwrap();
    let output = Svadev::new(&["test", "opcode", "fault.", "--unit", "page_requests=off", "--json", file]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    let results = json_of(results.path());
    let (skipped, passed): (Vec<_>, Vec<_>) =
        results["results"].as_array().unwrap().iter().partition(|result| result["verdict"] == "skip");
    assert!(passed.len() > skipped.len() && skipped.len() > 4, "{} passed, {} skipped", passed.len(), skipped.len());
    for result in skipped {
        assert!(result["reason"].as_str().unwrap().contains("--unit page_requests=on"), "{result}");
    }
}

#[test]
fn a_guest_that_lacks_something_for_sva_is_told_what_in_one_line() {
    for (option, value, remedy) in [
        ("--append", "intel_iommu=sm_off", "intel_iommu=on,sm_on"),
        ("--append", "pci=noats", "pci=noats"),
        ("--append", "intel_iommu=off", "intel_iommu=on,sm_on"),
        ("--unit", "scalable_mode=off", "--unit scalable_mode=on"),
    ] {
        let output = Svadev::new(&["test", "opcode", option, value]).run();
        assert_eq!(output.status.code(), Some(125), "{value}: {}", stdout_of(&output) + &stderr_of(&output));
        let text = stderr_of(&output);
        let told: Vec<_> = text.lines().filter(|line| line.contains("no process can bind")).collect();
        assert!(told.len() == 1 && told[0].contains(remedy), "{value}: {text}");
        assert!(!stdout_of(&output).contains("FAIL"), "{value}: no test is to blame");
    }
}

#[test]
fn the_auditor_finds_only_what_is_planted_without_caches() {
    audited_suite_passes("none");
}

#[test]
fn the_auditor_finds_only_what_is_planted_with_strict_caches() {
    audited_suite_passes("strict");
}

#[test]
fn the_auditor_finds_only_what_is_planted_with_adversarial_caches() {
    audited_suite_passes("adversarial");
}

/// Only the tests of the auditor itself need it.
const NEED_THE_AUDITOR: &str = "audit.missing_invalidation";
/// And one sees that a module that was loaded without it plants nothing.
const NEED_NO_AUDITOR: &str = "audit.plant_is_refused_unless_asked_for";

/// These wait for the device's time limit, 50 s here with the time limits stretched: they have a run of their own.
const AS_LONG_AS_THE_DEVICE_MAY_TAKE: &str = "driver.L7";

#[test]
fn unbind_waits_as_long_as_the_device_may_take() {
    let output = Svadev::new(&["test", AS_LONG_AS_THE_DEVICE_MAY_TAKE]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    assert!(stdout_of(&output).contains("4 passed"), "{}", stdout_of(&output));
}

fn suite_passes(machine: &[&str]) {
    for result in suite_results(machine, NEED_THE_AUDITOR) {
        assert_ne!(result["name"], "svadev/audit", "nobody asked for it");
    }
}

fn audited_suite_passes(caching: &str) {
    let results = suite_results(&["--audit", "--caching", caching], NEED_NO_AUDITOR);
    let planted = results.iter().filter(|result| result["name"].as_str().unwrap().contains(NEED_THE_AUDITOR)).count();
    assert!(planted > 0, "the mistake was planted");
    let audit = results.iter().find(|result| result["name"] == "svadev/audit").expect("the auditor's row");
    let reports = audit["reports"].as_array().unwrap();
    assert_eq!(reports.len(), planted, "a report for each mistake, and no other: {reports:#?}");
    for report in reports {
        assert_eq!(report["kind"], "missing-invalidation", "{report}");
        // Both hold it where there is an IOTLB; whichever is looked at first is named.
        let cache = report["cache"].as_str().unwrap();
        assert!(cache == "device-tlb" || (cache == "iotlb" && caching != "none"), "{report}");
        assert!(report["age_ns"].as_u64().unwrap() >= 500_000_000, "not before the limit: {report}");
    }
}

/// Runs the suite. Every test must pass, or be one of those that may be skipped.
fn suite_results(machine: &[&str], may_be_skipped: &str) -> Vec<serde_json::Value> {
    let results = tempfile::NamedTempFile::new().unwrap();
    let file = results.path().to_str().unwrap();
    let svadev = Svadev::new(&["test", "--json", file, "--exclude", AS_LONG_AS_THE_DEVICE_MAY_TAKE]).args(machine);
    let output = svadev.run();
    assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    // By its name: the file that was there is replaced as a whole.
    let document = json_of(results.path());
    assert_eq!((&document["format"], &document["kind"]), (&1.into(), &"svadev-test".into()));
    let results = document["results"].as_array().unwrap().clone();
    assert!(results.len() > 100, "the suite has hundreds of tests, {} ran", results.len());
    for result in &results {
        let skippable = result["name"].as_str().unwrap().contains(may_be_skipped);
        assert_eq!(result["verdict"], if skippable { "skip" } else { "pass" }, "{result}");
        assert!(result["seconds"].as_f64().unwrap() >= 0.0);
    }
    results
}

#[test]
fn a_filter_runs_only_what_it_names_and_an_unknown_one_fails() {
    let output = Svadev::new(&["test", "opcode"]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    let lines = stdout_of(&output);
    let tests = lines.lines().filter(|line| line.starts_with("ok "));
    assert!(tests.clone().count() > 0 && tests.clone().all(|line| line.contains("opcode")), "{lines}");
    let output = Svadev::new(&["test", "no-such-test"]).run();
    assert_eq!(output.status.code(), Some(1), "{}", stdout_of(&output));
}

fn json_of(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What `test --list` names, two shards run once each, and the joined files say so.
#[test]
fn shards_run_each_test_once_and_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let list = Svadev::new(&["test", "copy", "--list"]).run();
    let mut listed: Vec<String> = stdout_of(&list).lines().map(str::to_owned).collect();
    for (shard, name) in [("1/2", "1.json"), ("2/2", "2.json")] {
        let output = Svadev::new(&["test", "copy", "--shard", shard, "--json", &file(name)]).run();
        assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    }
    let one = Svadev::new(&["report", "merge", &file("1.json")]).run();
    assert_eq!(one.status.code(), Some(2), "{}", stderr_of(&one));
    assert!(stderr_of(&one).contains("missing: 2/2"), "{}", stderr_of(&one));
    let (json, junit, ktap, kcidb) = (file("m.json"), file("m.xml"), file("m.ktap"), file("m.kcidb"));
    let merged = Svadev::new(&["report", "merge", &file("2.json"), &file("1.json"), "--json", &json])
        .args(&["--junit", &junit, "--ktap", &ktap, "--kcidb", &kcidb])
        .run();
    assert_eq!(merged.status.code(), Some(0), "{}", stdout_of(&merged) + &stderr_of(&merged));
    let names = |values: &serde_json::Value, key: &str| -> Vec<String> {
        values.as_array().unwrap().iter().map(|value| value[key].as_str().unwrap().to_owned()).collect()
    };
    let mut ran = names(&json_of(json.as_ref())["results"], "name");
    ran.sort();
    listed.sort();
    assert!(listed.len() > 10);
    assert_eq!(ran, listed);
    let mut reported = names(&json_of(kcidb.as_ref())["tests"], "comment");
    reported.sort();
    assert_eq!(reported, listed);
    let text = |path: &str| std::fs::read_to_string(path).unwrap();
    assert_eq!(text(&junit).matches("<testcase ").count(), listed.len());
    assert!(text(&ktap).starts_with(&format!("KTAP version 1\n1..{}\n", listed.len())), "{}", text(&ktap));
}

#[test]
fn the_demo_tells_its_story_and_its_figures() {
    let figures = tempfile::NamedTempFile::new().unwrap();
    let output = Svadev::new(&["demo", "--json", figures.path().to_str().unwrap()]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stdout_of(&output) + &stderr_of(&output));
    let figures = json_of(figures.path());
    let names: Vec<_> =
        figures["figures"].as_array().unwrap().iter().filter_map(|figure| figure["name"].as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("00:05.0.")), "the unit's counters: {names:?}");
    assert!(names.iter().any(|name| name.starts_with("00:06.0.")), "a function's counters: {names:?}");
}

#[test]
fn a_hosts_program_runs_in_the_guest_and_returns_its_status_and_output() {
    // A dynamic program of the host, so that its libraries have to go along.
    let output = Svadev::new(&["vm", "-q"]).args(&["--", "/bin/bash", "-c", "printf 'a\\nb\\0c'; exit 42"]).run();
    assert_eq!(output.status.code(), Some(42), "{}", stderr_of(&output));
    assert_eq!(output.stdout, b"a\nb\0c", "bytes pass as they are");
    let output = Svadev::new(&["vm", "-q", "--", "/bin/false"]).run();
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    // Not a terminal: a program that reads to the end of its input gets all of it, and there. More than a serial port's
    // buffers hold, and bytes that would mean something to a terminal.
    let text: String = (0..20_000).map(|n| char::from((n % 127) as u8)).collect();
    let output = Svadev::new(&["vm", "-q", "--", "/bin/cat"]).input(&text).run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert!(output.stdout == text.as_bytes(), "{} bytes of {}", output.stdout.len(), text.len());
    let output = Svadev::new(&["vm", "-q", "--", "/bin/cat"]).run();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b""[..]), "{}", stderr_of(&output));
}

#[test]
fn a_shell_reads_what_is_piped_into_it() {
    let output = Svadev::new(&["vm", "-q"]).input("echo answer=$((40+2)); uname -n\n").run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    let text = stdout_of(&output);
    assert!(text.contains("answer=42") && text.contains("svadev"), "{text}");
}

#[test]
fn a_shared_folder_is_read_and_written() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("question"), "6 * 7").unwrap();
    let share = shared.path().to_str().unwrap();
    let output = Svadev::new(&["vm", "-q", "--share", share]).args(&["--", "sh", "-c", "cp question answer"]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert_eq!(std::fs::read_to_string(shared.path().join("answer")).unwrap(), "6 * 7");
}

/// A dynamic program that the guest has no libraries for, by the name that it has there.
#[test]
fn a_program_in_the_shared_folder_runs_from_there() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::copy("/bin/bash", shared.path().join("prog")).unwrap();
    let (share, json) = (shared.path().to_str().unwrap(), shared.path().join("end.json"));
    let output = Svadev::new(&["vm", "-q", "--share", share, "--json", json.to_str().unwrap()])
        .args(&["--", "/mnt/share/prog", "-c", "echo $0; exit 123"])
        .run();
    assert_eq!((output.status.code(), stdout_of(&output).as_str()), (Some(123), "/mnt/share/prog\n"));
    assert_eq!(stderr_of(&output), "", "quiet is quiet");
    let end = json_of(&json);
    assert_eq!((&end["by"], &end["status"]), (&"program".into(), &123.into()));
}

/// The guest mounts its own file system for temporary files, but not over the program.
#[test]
fn a_program_below_the_hosts_temporary_folder_runs() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("prog");
    std::fs::copy("/bin/false", &program).unwrap();
    let output = Svadev::new(&["vm", "-q", "--"]).args(&[program.to_str().unwrap()]).run();
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
}

/// The start that finds the BAR is not stopped, and the user's own is.
#[test]
fn a_machine_that_waits_for_a_debugger_does_so_only_after_its_bar_was_found() {
    let mut run = Svadev::new(&["vm", "--qemu-arg", "-S", "--", "true"]).with_fresh_cache().unscaled().start();
    run.wait_for_error("the guest is stopped");
    run.signal(Signal::SIGTERM);
    let output = run.finish();
    assert_eq!(output.status.code(), Some(130), "{}", stderr_of(&output));
}

#[test]
fn the_dmar_table_is_put_right_when_the_first_guess_is_wrong() {
    let output =
        Svadev::new(&["vm", "-q", "-v"]).with_fresh_cache().args(&["--", "sh", "-c", "dmesg | grep dmar0"]).run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("rewriting the DMAR table"), "{}", stderr_of(&output));
    assert!(stdout_of(&output).contains("Using Queued invalidation"), "{}", stdout_of(&output));
}

#[test]
fn dmar_learns_the_address_that_a_run_then_finds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dmar.bin");
    let output = Svadev::new(&["dmar", "--address", "auto", "-o", file.to_str().unwrap()]).with_fresh_cache().run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    let table = std::fs::read(&file).unwrap();
    let address = u64::from_le_bytes(table[20..28].try_into().unwrap());
    assert!(address != 0 && address & 0xfff == 0, "{address:#x}");
    assert!(stderr_of(&output).contains(&format!("{address:#x}")), "{}", stderr_of(&output));
}

#[test]
fn a_killed_qemu_ends_everything() {
    let mut run = Svadev::new(&["vm", "-q", "--", "sleep", "1000"]).start();
    let qemu = run.wait_for_qemu();
    nix::sys::signal::kill(qemu, Signal::SIGKILL).unwrap();
    let output = run.finish();
    assert_eq!(output.status.code(), Some(121), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("SIGKILL"), "{}", stderr_of(&output));
}

#[test]
fn a_qemu_that_does_not_start_is_shown() {
    let output = Svadev::new(&["vm", "-q", "--qemu-arg", "-no-such-option", "--", "true"]).run();
    assert_eq!(output.status.code(), Some(121), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("no-such-option"), "{}", stderr_of(&output));
}

#[test]
fn a_guest_panic_is_told_from_other_ends() {
    let output = Svadev::new(&["vm", "-q"]).args(&["--", "sh", "-c", "echo c > /proc/sysrq-trigger"]).run();
    assert_eq!(output.status.code(), Some(122), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("sysrq triggered crash"), "{}", stderr_of(&output));
}

/// QEMU is stopped for longer than a guest may be silent, as by Ctrl-Z or a debugger: the guest had no time meanwhile.
#[test]
fn a_guest_that_is_stopped_for_a_while_goes_on() {
    let program = ["vm", "--", "sh", "-c", "echo started; sleep 3; echo ended"];
    let mut run = Svadev::new(&program).unscaled().start();
    run.wait_for_output("started");
    let qemu = run.wait_for_qemu();
    nix::sys::signal::kill(qemu, Signal::SIGSTOP).unwrap();
    run.wait_for_error("the guest is stopped");
    std::thread::sleep(Duration::from_secs(33));
    nix::sys::signal::kill(qemu, Signal::SIGCONT).unwrap();
    let output = run.finish();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert!(stdout_of(&output).contains("ended"), "{}", stdout_of(&output));
}

/// PID 1 is frozen, and with it everything that it would say.
#[test]
fn a_guest_that_is_silent_is_a_hang() {
    let freeze = "mkdir /tmp/c && mount -t cgroup2 none /tmp/c && mkdir /tmp/c/f && echo 1 > /tmp/c/f/cgroup.procs && \
                  echo 1 > /tmp/c/f/cgroup.freeze; sleep 1000";
    let output = Svadev::new(&["vm", "--", "sh", "-c", freeze]).unscaled().run();
    assert_eq!(output.status.code(), Some(123), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("silent for 30 s"), "{}", stderr_of(&output));
}

#[test]
fn the_users_time_limit_ends_a_run() {
    let output = Svadev::new(&["vm", "-q", "--timeout", "2", "--", "sleep", "1000"]).run();
    assert_eq!(output.status.code(), Some(123), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("--timeout"), "{}", stderr_of(&output));
}

#[test]
fn a_guest_whose_set_up_fails_says_why() {
    let output = Svadev::new(&["test", "--append", "module_blacklist=svadev"]).run();
    assert_eq!(output.status.code(), Some(125), "{}", stdout_of(&output) + &stderr_of(&output));
    assert!(stderr_of(&output).contains("svadev.ko"), "{}", stderr_of(&output));
}

#[test]
fn a_signal_ends_everything() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut run = Svadev::new(&["vm", "-q", "--", "sleep", "1000"]).start();
        run.wait_for_qemu();
        run.signal(signal);
        let output = run.finish();
        assert_eq!(output.status.code(), Some(130), "{}", stderr_of(&output));
        assert!(stderr_of(&output).contains(signal.as_str()), "{}", stderr_of(&output));
    }
}

#[test]
fn qemu_does_not_outlive_a_svadev_that_was_killed_and_its_folder_not_the_next_run() {
    let mut run = Svadev::new(&["vm", "-q", "--", "sleep", "1000"]).start();
    let qemu = run.wait_for_qemu();
    run.signal(Signal::SIGKILL);
    let (output, runtime) = run.finish_dirty();
    assert_eq!(output.status.code(), None);
    harness::wait_until_gone(qemu);
    // The next run sweeps the folder, and the usual check finds nothing.
    let output = Svadev::new(&["vm", "-q", "--", "true"]).with_runtime(runtime).run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
}

#[test]
fn serve_keeps_the_table_right_over_several_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let (sockets, dmar) = (folder.path().join("s"), folder.path().join("dmar.bin"));
    let common = ["--socket-dir", sockets.to_str().unwrap(), "--dmar", dmar.to_str().unwrap()];
    let args = Svadev::new(&["qemu-args", "--format", "json"]).args(&common).run();
    assert_eq!(args.status.code(), Some(0), "{}", stderr_of(&args));
    let args: Vec<String> = serde_json::from_slice(&args.stdout).unwrap();
    let mut serve = Svadev::new(&["serve"]).args(&common).start();
    serve.wait_for_error("00:05.0 listens on ");
    for expected in ["restart QEMU", ", as in "] {
        let mut qemu = harness::bare_qemu(&args);
        serve.wait_for_error(expected);
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        serve.wait_for_error("00:05.0: disconnected");
    }
    serve.signal(Signal::SIGTERM);
    let output = serve.finish();
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert_eq!(std::fs::read_dir(&sockets).unwrap().count(), 0, "no socket stays");
}

/// A closed terminal ends it cleanly, and what SIGKILL leaves does not keep the next one from starting.
#[test]
fn serve_starts_again_however_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (sockets, notes) = (folder.path().join("s"), folder.path().join("notes.txt"));
    let common = ["--socket-dir", sockets.to_str().unwrap()];
    let start = || {
        let mut serve = Svadev::new(&["serve"]).args(&common).start();
        serve.wait_for_error("ready: ");
        serve
    };
    let mut first = start();
    // Beside the first one, which the harness would wait for.
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_svadev")).arg("serve").args(common).output().unwrap();
    assert_eq!(second.status.code(), Some(120));
    assert!(stderr_of(&second).contains("another backend uses"), "{}", stderr_of(&second));
    first.signal(Signal::SIGKILL);
    _ = first.finish();
    assert!(std::fs::read_dir(&sockets).unwrap().count() > 0, "it had no time to remove its sockets");
    for signal in [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGINT] {
        let mut serve = start();
        serve.signal(signal);
        let output = serve.finish();
        assert_eq!(output.status.code(), Some(0), "{signal}: {}", stderr_of(&output));
        assert_eq!(std::fs::read_dir(&sockets).unwrap().count(), 0, "{signal}: no socket stays");
    }
    std::fs::write(&notes, "a person's notes").unwrap();
    let refused = Svadev::new(&["serve", "--dmar", notes.to_str().unwrap()]).args(&common).run();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr_of(&refused));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "a person's notes");
}

#[test]
fn bad_input_names_itself_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let topology = folder.path().join("bad.toml");
    std::fs::write(&topology, "[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:05.0\"\n").unwrap();
    let topology = topology.to_str().unwrap();
    // A tree without what a guest needs, refused before a boot, and by the doctor in the same words.
    let tree = folder.path().join("linux");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(".config"), "CONFIG_64BIT=y\nCONFIG_INTEL_IOMMU=y\n").unwrap();
    let tree = tree.to_str().unwrap();
    for (args, status, words) in [
        (&["test", "--kernel", tree][..], 120, "CONFIG_INTEL_IOMMU_SVM=y   # shared virtual addressing"),
        (&["test", "--topology", topology], 2, "bad.toml:4:11: 00:05.0 is already in use"),
        (&["test", "--topology", "/no/such/file"], 2, "--topology /no/such/file"),
        (&["vm", "--levels", "6"], 2, "4 or 5"),
        (&["vm", "--kernel", "/etc/passwd"], 120, "not a bzImage"),
        (&["vm", "--qemu", "/bin/true"], 120, "not a QEMU binary"),
        (&["vm", "--share", "/no/such/folder"], 2, "--share"),
        (&["vm", "-q", "--", "/no/such/program"], 120, "no such program"),
    ] {
        let output = Svadev::new(args).run();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", stderr_of(&output));
        assert!(stderr_of(&output).contains(words), "{args:?}: {}", stderr_of(&output));
    }
    let doctor = Svadev::new(&["doctor", "--kernel", tree]).run();
    assert_eq!(doctor.status.code(), Some(120), "{}", stdout_of(&doctor));
    assert!(
        stdout_of(&doctor).contains("CONFIG_INTEL_IOMMU_SVM=y   # shared virtual addressing"),
        "{}",
        stdout_of(&doctor)
    );
}

/// What is shown by a dry run is removed by the next.
#[test]
fn clean_says_what_it_removes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("svadev/logs");
    std::fs::create_dir_all(&cache).unwrap();
    let clean = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_svadev"));
        let output = command.arg("clean").args(more).env("XDG_CACHE_HOME", folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
        stdout_of(&output)
    };
    assert!(clean(&["--dry-run"]).contains("would remove"));
    assert!(cache.exists());
    assert!(clean(&[]).contains("removed") && !cache.exists());
    assert_eq!(clean(&[]), "nothing to remove\n");
}

//! Finds the files that a program of the host needs to run in the guest.
use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// ELF program header type of the dynamic loader's path (System V ABI, gABI 4.1 chapter 5).
const PT_INTERP: u32 = 3;
/// Deepest chain of scripts whose interpreter is a script; Linux stops at the same (`fs/exec.c`).
const MAX_SCRIPT_DEPTH: u32 = 5;

/// What the program is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// ELF with no dynamic loader.
    Static,
    /// ELF with a dynamic loader, this one.
    Dynamic(PathBuf),
    /// `#!` script: its interpreter.
    Script(PathBuf),
}

/// The files that `program` needs besides what `has` says is in the guest, itself first, each with its guest path.
///
/// # Errors
/// The program cannot run in the guest, or a library is missing.
pub(crate) fn files(program: &Path, has: &dyn Fn(&str) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(program, has, 0, &mut files)?;
    Ok(files)
}

fn collect(program: &Path, has: &dyn Fn(&str) -> bool, depth: u32, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    ensure!(
        depth < MAX_SCRIPT_DEPTH,
        "{}: the interpreter is a script of a script; at most {MAX_SCRIPT_DEPTH} levels are supported",
        program.display()
    );
    files.push(program.to_owned());
    match kind(program).with_context(|| program.display().to_string())? {
        Kind::Static => {}
        Kind::Dynamic(loader) => {
            files.extend(libraries(&loader, program)?);
            files.push(loader);
        }
        // The guest's own shell serves for `#!/bin/sh`.
        Kind::Script(interpreter) if interpreter.to_str().is_some_and(has) => {}
        Kind::Script(interpreter) => {
            ensure!(
                interpreter.exists(),
                "{}: the interpreter {} is missing",
                program.display(),
                interpreter.display()
            );
            note!(
                "{} is a script: its interpreter {} is packed with its shared libraries, \
                 but not the files it reads at run time",
                program.display(),
                interpreter.display()
            );
            collect(&interpreter, has, depth + 1, files)?;
        }
    }
    Ok(())
}

fn kind(program: &Path) -> anyhow::Result<Kind> {
    let mut head = Vec::new();
    std::fs::File::open(program)?.take(64 << 10).read_to_end(&mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = std::str::from_utf8(line).context("the #! line is not UTF-8")?;
        let interpreter = line.split_whitespace().next().context("the #! line is empty")?;
        return Ok(Kind::Script(interpreter.into()));
    }
    elf_kind(&head)
}

/// Looks for the dynamic loader in the first part of an ELF file (gABI 4.1 chapters 4 and 5).
fn elf_kind(head: &[u8]) -> anyhow::Result<Kind> {
    let bytes = |at: usize, count: usize| head.get(at..at.checked_add(count)?);
    let half = |at| bytes(at, 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let xword = |at: usize| {
        let value = u64::from_le_bytes(bytes(at, 8)?.try_into().expect("8 bytes"));
        usize::try_from(value).ok()
    };
    ensure!(bytes(0, 4) == Some(b"\x7fELF"), "not an ELF program and not a #! script");
    // EI_CLASS 64-bit, EI_DATA little-endian, e_machine EM_X86_64.
    ensure!(bytes(4, 2) == Some(&[2, 1]) && half(18) == Some(62), "not a program for x86-64");
    let parse = || {
        let (offset, size, count) = (xword(32)?, half(54)?, half(56)?);
        for index in 0..count {
            let header = offset.checked_add(index.checked_mul(size)?)?;
            let kind = bytes(header, 4)?;
            if kind == PT_INTERP.to_le_bytes() {
                return Some(Some(bytes(xword(header.checked_add(8)?)?, xword(header.checked_add(32)?)?)?));
            }
        }
        Some(None)
    };
    match parse().context("the ELF headers point beyond the first 64 KiB of the file")? {
        None => Ok(Kind::Static),
        Some(path) => {
            let path = path.strip_suffix(&[0]).unwrap_or(path);
            Ok(Kind::Dynamic(std::str::from_utf8(path).context("the path of the dynamic loader is not UTF-8")?.into()))
        }
    }
}

/// The shared libraries, as the loader itself finds them; `--list` runs nothing of the program.
fn libraries(loader: &Path, program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new(loader);
    command.arg("--list").arg(program);
    crate::qemu::process::die_with_parent(&mut command);
    let output = command.output().with_context(|| loader.display().to_string())?;
    if !output.status.success() {
        bail!("{}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    parse_list(&String::from_utf8_lossy(&output.stdout)).with_context(|| program.display().to_string())
}

/// Lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`,
/// `linux-vdso.so.1 (0x…)`.
fn parse_list(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line == "statically linked" {
            continue;
        }
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place == "not found" {
            bail!("the library {name} is missing");
        }
        let path = place.rsplit_once(" (0x").map_or(place, |(path, _)| path).trim();
        if path.starts_with('/') {
            found.push(path.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let want = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_list(text).unwrap(), want);
        assert!(parse_list("\tlibx.so => not found\n").unwrap_err().to_string().contains("libx.so"));
        assert!(parse_list("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn this_test_program_brings_its_loader_and_c_library() {
        let files = files(&std::env::current_exe().unwrap(), &|_| false).unwrap();
        let named = |part: &str| files.iter().any(|file| file.display().to_string().contains(part));
        assert!(named("libc.so") && named("ld-linux"), "{files:?}");
        assert!(files.iter().all(|file| file.exists()), "{files:?}");
    }

    #[test]
    fn a_script_needs_its_interpreter_unless_the_guest_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("s");
        std::fs::write(&script, "#! /bin/sh -e\necho\n").unwrap();
        assert_eq!(files(&script, &|path| path == "/bin/sh").unwrap(), std::slice::from_ref(&script));
        assert!(files(&script, &|_| false).unwrap().contains(&PathBuf::from("/bin/sh")));
        std::fs::write(&script, format!("#!{}\n", script.display())).unwrap();
        assert!(files(&script, &|_| false).is_err(), "a script that interprets itself must end");
    }

    #[test]
    fn damaged_elf_files_are_errors() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        for length in 0..200 {
            assert!(elf_kind(&whole[..length]).is_err(), "{length} bytes");
        }
        let mut wild = whole[..4096].to_vec();
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(elf_kind(&wild).is_err());
        assert!(elf_kind(b"hello").is_err());
    }
}

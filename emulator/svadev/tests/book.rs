//! The book's pages: each is in its table of contents, and each link inside the project leads somewhere.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every Markdown file below a folder, build outputs left out.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && name != "book" && !name.starts_with('.') {
            pages(&entry, found);
        } else if name.ends_with(".md") {
            found.push(entry);
        }
    }
}

/// The targets of a page's links, code blocks and code spans left out.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code || line.starts_with("    ") {
            continue;
        }
        // Between backquotes there is code, but a link's own text may be quoted.
        let parts: Vec<&str> = line.split("](").collect();
        links.extend(parts[1..].iter().filter_map(|part| part.split_once(')')).map(|(link, _)| link.to_owned()));
    }
    links
}

#[test]
fn links_lead_somewhere() {
    let mut found = Vec::new();
    pages(&root(), &mut found);
    assert!(found.len() > 20, "{found:?}");
    let mut broken = Vec::new();
    for page in found {
        for link in links(&std::fs::read_to_string(&page).unwrap()) {
            let file = link.split('#').next().unwrap();
            if !link.contains("://") && !file.is_empty() && !page.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}

#[test]
fn every_page_of_the_book_is_in_its_contents() {
    let docs = root().join("docs");
    let contents = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed = links(&contents);
    let mut found = Vec::new();
    pages(&docs, &mut found);
    for page in found {
        let name = page.strip_prefix(&docs).unwrap().to_string_lossy().into_owned();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "{name} is not in SUMMARY.md");
    }
}

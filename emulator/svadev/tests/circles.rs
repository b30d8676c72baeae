//! The modules of a crate do not depend on each other in a circle. A reader can take the files of a folder in an order
//! in which each file needs only those before it. A module's children are part of it; its tests do not count.
//!
//! The test parses the sources and follows every path that starts at `crate`, `self`, `super` or a child. It does not
//! see method calls, nor what a macro expands to.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::MetadataCommand;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, UseTree};

/// A module's place in its crate: `["queue", "rings"]`; the crate itself is empty.
type Place = Vec<String>;

/// The paths in the modules of one crate, without tests.
#[derive(Default)]
struct Crate {
    /// For each module, the paths that it names, from the crate's root.
    paths: BTreeMap<Place, Vec<Place>>,
    /// Names that a `use` brings into a module, and where they come from.
    passed_on: BTreeMap<Place, Place>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut this = Self::default();
        this.file(root, Vec::new(), root.parent().unwrap());
        this
    }

    /// Reads a module's file; `folder` is where the files of its children are.
    fn file(&mut self, file: &Path, place: Place, folder: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let items = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display())).items;
        self.items(items, &place, folder);
    }

    fn items(&mut self, items: Vec<Item>, place: &Place, folder: &Path) {
        let mut names = Names { place: place.clone(), children: BTreeSet::new(), found: Vec::new() };
        for item in &items {
            if let Item::Mod(child) = item {
                names.children.insert(child.ident.to_string());
            }
        }
        for item in items {
            match item {
                Item::Mod(child) if !is_test(&child.attrs) => {
                    let name = child.ident.to_string();
                    let place = [place.clone(), vec![name.clone()]].concat();
                    if let Some((_, items)) = child.content {
                        self.items(items, &place, &folder.join(name));
                    } else {
                        let beside = folder.join(format!("{name}.rs"));
                        let inside = folder.join(&name).join("mod.rs");
                        self.file(if beside.exists() { &beside } else { &inside }, place, &folder.join(name));
                    }
                }
                Item::Mod(_) => {}
                Item::Use(item) if !is_test(&item.attrs) => names.visit_item_use(&item),
                item => names.visit_item(&item),
            }
        }
        for (path, name) in &names.found {
            if let Some(name) = name {
                self.passed_on.insert([place.clone(), vec![name.clone()]].concat(), path.clone());
            }
        }
        let paths = names.found.into_iter().map(|(path, _)| path);
        self.paths.entry(place.clone()).or_default().extend(paths);
    }

    /// The module that a path leads to, through re-exports.
    fn target(&self, path: &Place) -> Place {
        let mut path = path.clone();
        for _ in 0..8 {
            let passed_on = (1..=path.len()).rev().find_map(|len| {
                let to = self.passed_on.get(&path[..len])?;
                (!self.paths.contains_key(&path[..len])).then(|| [to.clone(), path[len..].to_vec()].concat())
            });
            match passed_on {
                Some(next) if next != path => path = next,
                _ => break,
            }
        }
        let module = (0..=path.len()).rev().find(|&len| self.paths.contains_key(&path[..len]));
        path.truncate(module.unwrap_or(0));
        path
    }

    /// For each folder and module in it, the other modules of the folder that it needs.
    fn arrows(&self) -> BTreeMap<(Place, String), BTreeSet<String>> {
        let mut arrows: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (from, paths) in &self.paths {
            for to in paths.iter().map(|path| self.target(path)) {
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                    arrows.entry((from[..common].to_vec(), a.clone())).or_default().insert(b.clone());
                }
            }
        }
        arrows
    }

    /// A circle, if there is one.
    fn circle(&self) -> Option<String> {
        let arrows = self.arrows();
        arrows.keys().find_map(|(folder, start)| {
            let mut trail = vec![start.clone()];
            let mut seen = BTreeSet::new();
            search(&arrows, folder, start, &mut trail, &mut seen).then(|| {
                let names = trail.join(" → ");
                if folder.is_empty() { names } else { format!("in {}: {names}", folder.join("::")) }
            })
        })
    }
}

/// Searches from the end of `trail` for a way back to `start`. If there is one, `trail` is the circle.
fn search(
    arrows: &BTreeMap<(Place, String), BTreeSet<String>>,
    folder: &Place,
    start: &str,
    trail: &mut Vec<String>,
    seen: &mut BTreeSet<String>,
) -> bool {
    let at = trail.last().unwrap().clone();
    for next in arrows.get(&(folder.clone(), at)).into_iter().flatten() {
        if next == start {
            trail.push(next.clone());
            return true;
        }
        if seen.insert(next.clone()) {
            trail.push(next.clone());
            if search(arrows, folder, start, trail, seen) {
                return true;
            }
            trail.pop();
        }
    }
    false
}

/// Collects the paths in a module's items.
struct Names {
    place: Place,
    children: BTreeSet<String>,
    /// Each path, and the name that a `use` gives it in this module.
    found: Vec<(Place, Option<String>)>,
}

impl Names {
    /// The module where a path starts, if that is in this crate.
    fn start(&self, first: &str) -> Option<Place> {
        match first {
            "crate" => Some(Vec::new()),
            "self" => Some(self.place.clone()),
            "super" => Some(self.place[..self.place.len().saturating_sub(1)].to_vec()),
            child if self.children.contains(child) => Some([self.place.clone(), vec![child.into()]].concat()),
            _ => None,
        }
    }

    fn path(&mut self, segments: &[String], pass_on: Option<String>) {
        let Some(mut path) = segments.first().and_then(|first| self.start(first)) else { return };
        for segment in &segments[1..] {
            if segment == "super" {
                path.pop();
            } else if segment != "self" {
                path.push(segment.clone());
            }
        }
        self.found.push((path, pass_on));
    }

    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &dyn ToString| [before.to_vec(), vec![name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => self.path(&with(&name.ident), Some(name.ident.to_string())),
            UseTree::Rename(rename) => self.path(&with(&rename.ident), Some(rename.rename.to_string())),
            UseTree::Glob(_) => self.path(before, None),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A path of one word is a name that a `use` or an item of the module itself defines.
        if segments.len() > 1 {
            self.path(&segments, None);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {}
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

#[test]
fn no_crate_has_a_circle_of_modules() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let mut circles = Vec::new();
    for package in &metadata.packages {
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            if let Some(circle) = Crate::read(target.src_path.as_std_path()).circle() {
                circles.push(format!("{} ({}): {circle}", package.name, target.name));
            }
        }
    }
    assert!(circles.is_empty(), "modules that depend on each other in a circle:\n{}", circles.join("\n"));
}

/// The search finds a circle through a re-export of the crate's root, and one inside a folder.
#[test]
fn a_circle_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    let circle = || Crate::read(&folder.path().join("lib.rs")).circle();
    write("lib.rs", "mod a; mod b; pub use a::A; #[cfg(test)] mod tests { use crate::b::B; }");
    write("a.rs", "mod c; mod d; use crate::b::B; pub struct A(B);");
    write("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::A; }");
    write("a/c.rs", "use super::A;");
    write("a/d.rs", "fn d() -> super::c::C {}");
    assert_eq!(circle(), None, "tests and children do not count");
    write("b.rs", "pub struct B; fn f() { crate::A::new(); }");
    assert_eq!(circle().as_deref(), Some("a → b → a"));
    write("b.rs", "pub struct B;");
    write("a/c.rs", "use super::d;");
    assert_eq!(circle().as_deref(), Some("in a: c → d → c"));
}

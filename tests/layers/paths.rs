//! Rust source as words and paths: enough of its grammar to tell a path from a comment, and no more.

use std::fmt;

/// One file.
pub(crate) struct Source {
    /// Its name, beginning with `src/`.
    pub(crate) file: String,
    /// Every path outside tests, with `use` trees spelled out, and methods as `.name`.
    pub(crate) paths: Vec<PathAt>,
    words: Vec<Word>,
    test_modules: Vec<String>,
}

/// A path such as `crate::io::Engine`, and where it is.
#[derive(Debug)]
pub(crate) struct PathAt {
    pub(crate) line: usize,
    segments: Vec<String>,
}

/// A name, or one character of punctuation.
#[derive(Clone, Debug)]
struct Word {
    line: usize,
    text: String,
}

impl Source {
    pub(crate) fn new(file: &str, code: &str) -> Self {
        let mut test_modules = Vec::new();
        let words = without_tests(words(code), &mut test_modules);
        Self { file: file.to_owned(), paths: paths(&words), words, test_modules }
    }

    /// The module of the crate's root that the file belongs to.
    pub(crate) fn module(&self) -> &str {
        let name = self.file.strip_prefix("src/").unwrap_or(&self.file);
        name.split('/').next().unwrap_or(name).trim_end_matches(".rs")
    }

    /// The root module that a path leads to, if it starts at the root; `*` for all of them.
    pub(crate) fn imported<'p>(&self, path: &'p PathAt) -> Option<&'p str> {
        let supers = path.segments.iter().take_while(|s| *s == "super").count();
        let to_root = match path.segments[0].as_str() {
            "crate" | "tidegate" => 1,
            "super" if supers == self.depth() => supers,
            _ => return None,
        };
        path.segments.get(to_root).map(String::as_str)
    }

    /// How far the file's own module is from the root.
    fn depth(&self) -> usize {
        self.file.matches('/').count() - usize::from(self.file.ends_with("/mod.rs"))
    }

    /// The lines with this word.
    pub(crate) fn words(&self, wanted: &str) -> Vec<usize> {
        self.words.iter().filter(|word| word.text == wanted).map(|word| word.line).collect()
    }

    /// The files of its `#[cfg(test)] mod name;`.
    pub(crate) fn test_files(&self) -> Vec<String> {
        let dir = self.file.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        self.test_modules.iter().map(|name| format!("{dir}/{name}.rs")).collect()
    }

    /// `file:line: what`.
    pub(crate) fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.file)
    }
}

impl PathAt {
    /// Whether `part` is in it; with a leading `::`, at its beginning.
    pub(crate) fn has(&self, part: &str) -> bool {
        match part.strip_prefix("::") {
            Some(beginning) => {
                let wanted: Vec<_> = beginning.split("::").collect();
                self.segments.len() >= wanted.len()
                    && self.segments.iter().zip(&wanted).all(|(s, w)| s == w)
            }
            None => {
                let wanted: Vec<_> = part.split("::").collect();
                self.segments.windows(wanted.len()).any(|some| some == wanted)
            }
        }
    }
}

impl fmt::Display for PathAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments.join("::"))
    }
}

/// Splits code into words; comments, texts, characters and lifetimes are left out.
fn words(code: &str) -> Vec<Word> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = text(rest) {
            length
        } else if first == '\'' {
            character_or_lifetime(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length =
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(Word { line, text: rest[..length].to_owned() });
            length
        } else {
            if !first.is_whitespace() {
                found.push(Word { line, text: first.to_string() });
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of the text literal that begins here, with its prefix, if one does.
fn text(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c: char| !matches!(c, 'b' | 'c' | 'r')).filter(|n| *n <= 2)?;
    let after = &rest[prefix..];
    if rest[..prefix].contains('r') {
        let hashes = after.find(|c| c != '#')?;
        if !after[hashes..].starts_with('"') {
            return None;
        }
        let end = format!("\"{}", "#".repeat(hashes));
        let body = prefix + hashes + 1;
        return Some(rest[body..].find(&end).map_or(rest.len(), |n| body + n + end.len()));
    }
    let mut escaped = false;
    for (at, c) in after.strip_prefix('"')?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix + 1 + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// `'x'`, `'\n'`, or `'lifetime`.
fn character_or_lifetime(rest: &str) -> usize {
    let body = &rest[1..];
    let escape = usize::from(body.starts_with('\\'));
    let first = body[escape..].chars().next().map_or(0, char::len_utf8);
    match body[escape + first..].find('\'') {
        Some(n) if escape == 1 || n == 0 => 1 + escape + first + n + 1,
        _ => 1,
    }
}

/// Leaves out every `#[cfg(test)]` item; `modules` gets the names of those in files of their own.
fn without_tests(words: Vec<Word>, modules: &mut Vec<String>) -> Vec<Word> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if !is_test_attribute(&words[at..]) {
            kept.push(words[at].clone());
            at += 1;
            continue;
        }
        while is(&words, at, "#") {
            at = after_group(&words, at + 1);
        }
        let start = at;
        while at < words.len() && !is(&words, at, ";") && !is(&words, at, "{") {
            at = if is(&words, at, "(") || is(&words, at, "[") {
                after_group(&words, at)
            } else {
                at + 1
            };
        }
        if is(&words, at, ";") && at >= 2 && words[start..at].iter().any(|word| word.text == "mod")
        {
            modules.push(words[at - 1].text.clone());
        }
        let is_use = words[start..at].iter().any(|word| word.text == "use");
        at = if is(&words, at, "{") { after_group(&words, at) } else { at + 1 };
        if is_use && is(&words, at, ";") {
            at += 1;
        }
    }
    kept
}

/// `#[cfg(test)]` or `#[cfg(all(test`.
fn is_test_attribute(words: &[Word]) -> bool {
    let begins = |pattern: &[&str]| {
        words.len() >= pattern.len()
            && words.iter().zip(pattern).all(|(word, wanted)| word.text == *wanted)
    };
    begins(&["#", "[", "cfg", "(", "test", ")"])
        || begins(&["#", "[", "cfg", "(", "all", "(", "test", ","])
}

fn is(words: &[Word], at: usize, text: &str) -> bool {
    words.get(at).is_some_and(|word| word.text == text)
}

/// Behind the bracket that closes the one at `at`.
fn after_group(words: &[Word], mut at: usize) -> usize {
    let mut depth = 0;
    while at < words.len() {
        match words[at].text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Every path, `use` trees spelled out.
fn paths(words: &[Word]) -> Vec<PathAt> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if is_name(&words[at]) {
            let dots = words[..at].iter().rev().take_while(|word| word.text == ".").count();
            let method = dots == 1; // two are a range
            let start = if method { vec![String::new()] } else { Vec::new() };
            at = path(words, at, start, &mut found);
        } else {
            at += 1;
        }
    }
    for path in &mut found {
        if path.segments[0].is_empty() && path.segments.len() > 1 {
            path.segments.remove(0);
            path.segments[0].insert(0, '.');
        }
    }
    found
}

/// The path or tree at `at`, behind `start`. Answers where it ends.
fn path(words: &[Word], mut at: usize, mut start: Vec<String>, found: &mut Vec<PathAt>) -> usize {
    let line = words[at].line;
    loop {
        if is(words, at, "{") {
            let end = after_group(words, at);
            at += 1;
            while at < end - 1 {
                at = path(words, at, start.clone(), found);
                while at < end - 1 && !is(words, at, ",") {
                    at += 1; // `as other`
                }
                at += 1;
            }
            return end;
        }
        if let Some(word) = words.get(at).filter(|word| word.text != "self" || start.is_empty()) {
            start.push(word.text.clone());
        }
        at += 1;
        let continues = is(words, at, ":") && is(words, at + 1, ":");
        let next =
            words.get(at + 2).filter(|word| is_name(word) || word.text == "{" || word.text == "*");
        if !continues || next.is_none() {
            found.push(PathAt { line, segments: start });
            return at;
        }
        at += 2;
    }
}

fn is_name(word: &Word) -> bool {
    word.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

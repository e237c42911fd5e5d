//! The documents: text files under a directory, if need be several times over.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Error;

struct TextFile {
    /// Relative to the corpus's root; empty if the root is the file.
    path: PathBuf,
    bytes: u64,
}

/// Documents are numbered from 0: the files in the order of their paths, then all of them again, and so on.
pub struct Corpus {
    root: PathBuf,
    files: Vec<TextFile>,
    copies: u32,
}

impl Corpus {
    /// The text files under `root`, as often as it takes to make `repeat_to` bytes. Symbolic links are not
    /// followed. What cannot be read is left out with a note on standard error, except `root` itself.
    pub fn find(root: &Path, repeat_to: u64) -> Result<Corpus, Error> {
        let unreadable = |error| Error::Unreadable(root.to_path_buf(), error);
        let mut files = Vec::new();
        if fs::metadata(root).map_err(unreadable)?.is_dir() {
            fs::read_dir(root).map_err(unreadable)?;
            collect(root, &mut files);
        } else if let Some(bytes) = text_len(root).map_err(unreadable)? {
            files.push(TextFile { path: PathBuf::new(), bytes });
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let once: u64 = files.iter().map(|file| file.bytes).sum();
        if once == 0 {
            return Err(Error::NoText(root.to_path_buf()));
        }
        let copies = repeat_to.div_ceil(once).max(1) as u32;
        let corpus = Corpus { root: root.to_path_buf(), files, copies };
        if u32::try_from(corpus.documents()).is_err() {
            return Err(Error::Usage(format!("{} documents are too many", corpus.documents())));
        }
        Ok(corpus)
    }

    pub fn files(&self) -> usize {
        self.files.len()
    }

    pub fn documents(&self) -> usize {
        self.files.len() * self.copies as usize
    }

    /// Bytes in all documents.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum::<u64>() * u64::from(self.copies)
    }

    /// The text of a document; what is not UTF-8 in it is replaced.
    pub fn read(&self, document: u32) -> Result<String, Error> {
        let path = self.path(document);
        match fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8(bytes)
                .unwrap_or_else(|not_utf8| String::from_utf8_lossy(not_utf8.as_bytes()).into_owned())),
            Err(error) => Err(Error::Unreadable(path, error)),
        }
    }

    /// What to call a document: its path under the root, and which copy it is if not the first.
    pub fn name(&self, document: u32) -> String {
        let path = self.files[document as usize % self.files.len()].path.display();
        match document as usize / self.files.len() {
            0 => path.to_string(),
            copy => format!("{path} (copy {})", copy + 1),
        }
    }

    fn path(&self, document: u32) -> PathBuf {
        let relative = &self.files[document as usize % self.files.len()].path;
        if relative.as_os_str().is_empty() { self.root.clone() } else { self.root.join(relative) }
    }
}

/// Gathers the text files in and below `root`.
fn collect(root: &Path, files: &mut Vec<TextFile>) {
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let result = fs::read_dir(&directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_file() {
                    match text_len(&path) {
                        Ok(Some(bytes)) => {
                            let path = path.strip_prefix(root).map(Path::to_path_buf).unwrap_or(path);
                            files.push(TextFile { path, bytes });
                        }
                        Ok(None) => {}
                        Err(error) => eprintln!("left out {}: {error}", path.display()),
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = result {
            eprintln!("left out {}: {error}", directory.display());
        }
    }
}

/// The size of a file, if it is text: it is not empty and its first 8000 bytes have no zero among them.
fn text_len(path: &Path) -> io::Result<Option<u64>> {
    let mut head = Vec::new();
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.take(8000).read_to_end(&mut head)?;
    Ok((bytes > 0 && !head.contains(&0)).then_some(bytes))
}

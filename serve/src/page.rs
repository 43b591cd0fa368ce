//! The window's page, as `cargo xtask wasm` leaves it.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use axum::body::Bytes;
use lathe_protocol::{ErrorCode, ErrorInfo};

/// Every file of the page, and what it is.
const FILES: [(&str, &str); 6] = [
    ("index.html", "text/html; charset=utf-8"),
    ("lathe.css", "text/css; charset=utf-8"),
    ("start.js", "text/javascript; charset=utf-8"),
    ("lathe.js", "text/javascript; charset=utf-8"),
    ("lathe_bg.wasm", "application/wasm"),
    ("icon.png", "image/png"),
];

/// The page, in memory.
pub struct Page(Vec<File>);

pub struct File {
    name: &'static str,
    pub kind: &'static str,
    pub bytes: Bytes,
    pub compressed: Option<Bytes>,
    /// Of these bytes, in quotes.
    pub tag: String,
}

impl Page {
    pub fn read(folder: &Path) -> Result<Self, ErrorInfo> {
        let read = |(name, kind): (&'static str, &'static str)| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(|error| {
                let message = format!("Cannot read the window's page: {error}: {}", path.display());
                ErrorInfo::new(ErrorCode::Io, message).hint("`cargo xtask wasm` makes it anew")
            })?;
            let compressed = std::fs::read(folder.join(format!("{name}.gz"))).ok().map(Bytes::from);
            let hash = crate::hex(&digest::digest(&digest::SHA256, &bytes).as_ref()[..16]);
            Ok(File { name, kind, bytes: bytes.into(), compressed, tag: format!("\"{hash}\"") })
        };
        FILES.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub fn find(&self, name: &str) -> Option<&File> {
        let name = if name.is_empty() { "index.html" } else { name };
        self.0.iter().find(|file| file.name == name)
    }
}

/// The folder of the page: `LATHE_WEB`, or near the program: `web` beside it, `../share/lathe/web`, or `../web` as
/// `cargo xtask wasm` leaves it.
pub fn find_folder(program: &Path) -> Result<PathBuf, ErrorInfo> {
    let named = std::env::var_os("LATHE_WEB").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let beside = program.parent().unwrap_or(program);
    let places = match named {
        Some(folder) => vec![folder],
        None => ["web", "../share/lathe/web", "../web"].map(|place| beside.join(place)).into(),
    };
    let found = places.iter().find(|folder| folder.join("index.html").is_file());
    found.cloned().ok_or_else(|| {
        let looked = places.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("The window's page is not here; looked in {looked}");
        ErrorInfo::new(ErrorCode::NotFound, message)
            .hint("`cargo xtask wasm` makes it; LATHE_WEB names another folder")
    })
}

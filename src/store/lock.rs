//! One process a database: the lock file beside it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::remedy;

/// Held as long as the database may be written. The file stays when it is let go: removing
/// it could take the lock from a process that has opened it meanwhile.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database at `path`, or says who is in the way.
    pub(super) fn take(url: &str, path: &Path) -> Result<Lock, StoreError> {
        let lock = lock_path(path);
        let failed = |source: std::io::Error| StoreError::Lock {
            url: url.to_owned(),
            lock: lock.clone(),
            remedy: remedy::of_io(&source),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { url: url.to_owned(), lock }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

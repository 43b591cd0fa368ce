//! The Hugging Face token: in the operating system's keyring, or in `HF_TOKEN`, and nowhere else of ours. Where Python's
//! tools keep one, it is read too.

use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use keyring::{Entry, Error};
use lathe_protocol::{ErrorCode, ErrorInfo, Secret, TokenStatus};

use crate::{
    error::{Result, usage},
    net::NetOptions,
};

const SERVICE: &str = "lathe";
const USER: &str = "huggingface";
const VARIABLE: &str = "HF_TOKEN";
/// To ask a person for the keyring's password takes them a while.
const SAVE_TIMEOUT: Duration = Duration::from_mins(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) fn status(options: &NetOptions) -> TokenStatus {
    let is_kept =
        || if options.has_keyring { with_keyring(LOOK_TIMEOUT, |entry| is_kept(&entry)) } else { Ok(false) };
    status_of(options, is_kept)
}

/// A token, and where it was found.
pub(crate) struct Found {
    pub token: Secret,
    pub place: String,
}

/// Of the environment, the keyring, and the file of Python's tools, the first that has one.
pub(crate) fn find(options: &NetOptions) -> Option<Found> {
    if let Some(token) = &options.token {
        return Some(Found { token: token.clone(), place: VARIABLE.into() });
    }
    let kept = |entry: Entry| match entry.get_password() {
        Ok(token) => Ok(Some(token)),
        Err(Error::NoEntry) => Ok(None),
        Err(error) => Err(error),
    };
    // A keyring that fails holds nothing for us; the settings tell of it.
    if options.has_keyring
        && let Ok(Some(token)) = with_keyring(LOOK_TIMEOUT, kept)
    {
        return Some(Found { token: Secret(token), place: "the keyring".into() });
    }
    of_file(options)
}

fn of_file(options: &NetOptions) -> Option<Found> {
    let path = options.token_file.as_ref()?;
    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then(|| Found { token: Secret(token), place: path.display().to_string() })
}

pub(crate) fn save(token: &Secret) -> Result<()> {
    let token = token.0.trim().to_owned();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(usage("Not a Hugging Face token").hint("copy it whole: it begins with hf_"));
    }
    with_keyring(SAVE_TIMEOUT, move |entry| entry.set_password(&token))
        .map_err(|reason| no_keyring("kept", &reason))
}

pub(crate) fn remove() -> Result<()> {
    with_keyring(SAVE_TIMEOUT, |entry| removed(&entry)).map_err(|reason| no_keyring("removed", &reason))
}

fn no_keyring(what: &str, reason: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Io, format!("The token cannot be {what}: {reason}"))
        .hint(format!("set {VARIABLE} in the environment instead"))
}

fn status_of(
    options: &NetOptions,
    is_kept: impl FnOnce() -> std::result::Result<bool, String>,
) -> TokenStatus {
    if options.token.is_some() {
        return TokenStatus::Environment;
    }
    let kept = is_kept();
    match (kept, of_file(options)) {
        (Ok(true), _) => TokenStatus::Keyring,
        (_, Some(found)) => TokenStatus::File(found.place),
        (Ok(false), None) => TokenStatus::Absent,
        (Err(reason), None) => TokenStatus::NoKeyring(reason),
    }
}

fn is_kept(entry: &Entry) -> keyring::Result<bool> {
    match entry.get_password() {
        Ok(_) => Ok(true),
        Err(Error::NoEntry) => Ok(false),
        Err(error) => Err(error),
    }
}

fn removed(entry: &Entry) -> keyring::Result<()> {
    match entry.delete_credential() {
        Err(Error::NoEntry) => Ok(()),
        outcome => outcome,
    }
}

/// The error is why there is no keyring, in a sentence.
fn with_keyring<T: Send + 'static>(
    timeout: Duration,
    act: impl FnOnce(Entry) -> keyring::Result<T> + Send + 'static,
) -> std::result::Result<T, String> {
    within(timeout, || {
        let store = Entry::store_status().as_ref().map_err(sentence);
        store.and_then(|()| Entry::new(SERVICE, USER).and_then(act).map_err(|error| sentence(&error)))
    })
}

/// A keyring that hangs is left behind on a thread of its own.
fn within<T: Send + 'static>(
    timeout: Duration,
    ask: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    let (sender, answer) = sync_channel(1);
    thread::Builder::new()
        .name("keyring".into())
        // Fails if nobody waits any more.
        .spawn(move || drop(sender.send(ask())))
        .map_err(|error| format!("a thread cannot be started: {error}"))?;
    answer.recv_timeout(timeout).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => "the keyring does not answer".into(),
            RecvTimeoutError::Disconnected => "the keyring failed".into(),
        })
    })
}

/// What the keyring says, without the token: an error may hold what it could not read.
fn sentence(error: &Error) -> String {
    match error {
        Error::NoStorageAccess(_) => "the keyring is locked, or may not be used".into(),
        Error::PlatformFailure(_) => {
            let name = if cfg!(target_os = "linux") {
                "the desktop's secret service"
            } else {
                "the system's keyring"
            };
            format!("{name} does not run or does not answer")
        }
        Error::NotSupportedByStore(_) | Error::NoDefaultStore => {
            "this system has no keyring that Lathe knows".into()
        }
        _ => "the keyring failed".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use keyring_core::{api::CredentialStoreApi as _, mock};

    use super::*;
    use crate::testing::net_options;

    fn entry() -> Entry {
        let store = mock::Store::new().unwrap();
        Entry { inner: store.build(SERVICE, USER, None).unwrap() }
    }

    #[test]
    fn a_token_is_kept_found_and_removed() {
        let entry = entry();
        assert!(!is_kept(&entry).unwrap());
        entry.set_password("hf_secret").unwrap();
        assert!(is_kept(&entry).unwrap());
        removed(&entry).unwrap();
        assert!(!is_kept(&entry).unwrap());
        removed(&entry).unwrap();
    }

    #[test]
    fn the_environment_comes_first_and_a_missing_keyring_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut options = net_options("http://localhost");
        options.token = Some(Secret("hf_mine".into()));
        assert_eq!(status_of(&options, || panic!("not asked")), TokenStatus::Environment);
        options.token = None;
        options.token_file = Some(path.clone());
        assert_eq!(status_of(&options, || Ok(true)), TokenStatus::Keyring);
        assert_eq!(status_of(&options, || Ok(false)), TokenStatus::Absent);
        let reason = sentence(&Error::PlatformFailure("org.freedesktop".into()));
        assert_eq!(status_of(&options, || Err(reason.clone())), TokenStatus::NoKeyring(reason.clone()));
        std::fs::write(&path, "hf_of_python\n").unwrap();
        let of_file = TokenStatus::File(path.display().to_string());
        assert_eq!(status_of(&options, || Ok(false)), of_file);
        assert_eq!(status_of(&options, || Err(reason.clone())), of_file);
        let error = no_keyring("kept", &reason);
        assert_eq!(error.hint.as_deref(), Some("set HF_TOKEN in the environment instead"));
    }

    #[test]
    fn no_error_tells_the_token() {
        let error = Error::BadEncoding(b"hf_secret".to_vec());
        assert!(!sentence(&error).contains("hf_secret"));
        assert!(!format!("{:?}", Secret("hf_secret".into())).contains("hf_secret"));
        assert!(!save(&Secret("hf secret".into())).unwrap_err().message.contains("secret"));
    }

    #[test]
    fn a_keyring_that_hangs_does_not_hang_the_host() {
        let started = Instant::now();
        let hung: std::result::Result<(), String> = within(Duration::from_millis(50), || {
            thread::sleep(Duration::from_secs(5));
            Ok(())
        });
        assert_eq!(hung, Err("the keyring does not answer".into()));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

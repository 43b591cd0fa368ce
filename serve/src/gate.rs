//! Who may come in: a token that works once, and the cookie it is exchanged for.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use lathe_protocol::{ErrorCode, ErrorInfo};

/// Wrong tokens of one address within [`WINDOW`]; then none of its tokens is looked at.
const MAX_WRONG: u32 = 5;
const WINDOW: Duration = Duration::from_mins(1);
/// The oldest goes when there are more.
const MAX_COOKIES: usize = 64;
/// More addresses are not remembered.
const MAX_ADDRESSES: usize = 4096;

pub struct Gate {
    state: Mutex<State>,
}

struct State {
    token: String,
    cookies: Vec<String>,
    wrong: HashMap<IpAddr, (u32, Instant)>,
}

impl Gate {
    pub fn new() -> Result<Self, ErrorInfo> {
        let state = State { token: secret()?, cookies: Vec::new(), wrong: HashMap::new() };
        Ok(Self { state: Mutex::new(state) })
    }

    /// The token that works now.
    pub fn token(&self) -> String {
        self.lock().token.clone()
    }

    /// Exchanges the token, which is another from now on, for a cookie.
    pub fn enter(&self, address: IpAddr, token: &str, now: Instant) -> Result<String, ErrorInfo> {
        let mut state = self.lock();
        state.wrong.retain(|_, (_, since)| now.duration_since(*since) < WINDOW);
        let wrong = state.wrong.get(&address).map_or(0, |(count, _)| *count);
        if wrong >= MAX_WRONG || (wrong == 0 && state.wrong.len() >= MAX_ADDRESSES) {
            return Err(ErrorInfo::new(ErrorCode::Busy, "Too many wrong tokens").hint("wait a minute"));
        }
        if !same(token, &state.token) {
            state.wrong.entry(address).or_insert((0, now)).0 += 1;
            return Err(refused("This link is wrong, or was used before"));
        }
        let cookie = secret()?;
        state.token = secret()?;
        state.cookies.push(cookie.clone());
        if state.cookies.len() > MAX_COOKIES {
            state.cookies.remove(0);
        }
        Ok(cookie)
    }

    pub fn knows(&self, cookie: &str) -> bool {
        // All of them, so that time tells nothing.
        self.lock().cookies.iter().fold(false, |known, of_ours| same(cookie, of_ours) | known)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For who has no cookie, or one of a server that has ended.
pub fn refused(message: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Access, message)
        .hint("open the link that `lathe serve-ui` printed last; each works once")
}

fn same(a: &str, b: &str) -> bool {
    verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// 128 random bits in hex.
pub fn secret() -> Result<String, ErrorInfo> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)
        .map_err(|_| ErrorInfo::new(ErrorCode::Internal, "The system gives no random numbers"))?;
    Ok(crate::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    #[test]
    fn a_token_works_once_and_its_cookie_from_then_on() {
        let (gate, now) = (Gate::new().unwrap(), Instant::now());
        let token = gate.token();
        let cookie = gate.enter(HERE, &token, now).unwrap();
        assert_eq!(gate.enter(HERE, &token, now).unwrap_err().code, ErrorCode::Access);
        assert_ne!(gate.token(), token);
        assert!(gate.knows(&cookie) && !gate.knows(&token) && !gate.knows(""));
    }

    #[test]
    fn who_guesses_has_to_wait_and_nobody_else() {
        let (gate, now) = (Gate::new().unwrap(), Instant::now());
        for _ in 0..MAX_WRONG {
            assert_eq!(gate.enter(HERE, "guess", now).unwrap_err().code, ErrorCode::Access);
        }
        assert_eq!(gate.enter(HERE, &gate.token(), now).unwrap_err().code, ErrorCode::Busy);
        assert!(gate.enter(THERE, &gate.token(), now).is_ok());
        assert!(gate.enter(HERE, &gate.token(), now + WINDOW).is_ok());
    }
}

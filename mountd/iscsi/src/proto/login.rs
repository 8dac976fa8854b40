//! The login, without I/O (RFC 7143, sections 6 and 11.12): requests in, answers out.

use std::fmt;

use super::InitiatorName;
use super::chap::{self, Challenge, ChapConfig, Proof};
use super::params::{self, Params, Reply};
use super::pdu::{LoginRequest, LoginStatus, Stage};
use super::text::{self, Writer};

/// PDUs of one login.
const MAX_REQUESTS: u32 = 64;
/// Bytes of text of one login.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// PDUs that one text may be spread over.
const MAX_PIECES: u32 = 16;
/// The portal group that all portals are in.
const PORTAL_GROUP: &str = "1";

/// Fills bytes with noise.
pub type Entropy = Box<dyn FnMut(&mut [u8]) -> Result<(), crate::Error> + Send>;

/// What an initiator may have.
#[derive(Debug)]
pub enum Access {
    /// There is no such target, as far as this initiator may know.
    NotFound,
    /// It may log in.
    Open {
        /// If it proves who it is.
        chap: Option<ChapConfig>,
        /// The target's line for people.
        alias: String,
    },
}

/// Who may log in to what. Asked once in a login.
pub trait Policy {
    /// What `initiator` may do with the target `name`, in small letters.
    fn target(&self, name: &str, initiator: &InitiatorName) -> Access;
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionKind {
    /// To learn of targets.
    Discovery,
    /// To use one.
    Normal {
        /// Its name.
        target: String,
    },
}

/// What a login has agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Who has logged in.
    pub initiator: InitiatorName,
    /// Its part of the session's name.
    pub isid: [u8; 6],
    /// The session it wants to go on with; 0 for a new one.
    pub tsih: u16,
    /// The connection's number.
    pub cid: u16,
    /// What for.
    pub session: SessionKind,
    /// How data is moved.
    pub params: Params,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginAnswer {
    /// The target goes to the next stage.
    pub transit: bool,
    /// The stage it answers in.
    pub csg: Stage,
    /// The stage it goes to.
    pub nsg: Option<Stage>,
    /// How it goes.
    pub status: LoginStatus,
    /// Its text, at most 8192 bytes.
    pub text: Vec<u8>,
}

impl LoginAnswer {
    /// The same answer as a refusal.
    #[must_use]
    pub fn refused(self, status: LoginStatus) -> Self {
        Self { transit: false, nsg: None, status, text: Vec::new(), csg: self.csg }
    }
}

/// How it goes on.
#[derive(Debug)]
pub enum Step {
    /// Answer, and wait for the next request.
    Answer(LoginAnswer),
    /// Answer, and the session begins.
    Done(LoginAnswer, Box<Agreed>),
}

/// The login has failed.
#[derive(Debug)]
pub struct Failure {
    /// What the initiator is told.
    pub answer: LoginAnswer,
    /// What the log is told.
    pub why: String,
}

/// Who wants what, as the first request says.
#[derive(Debug)]
struct Identity {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
    initiator: InitiatorName,
    session: SessionKind,
}

/// How far the initiator has proved who it is.
#[derive(Debug)]
enum Proving {
    /// Nobody asks.
    NotNeeded,
    /// It has to, and nothing was said yet.
    Needed(ChapConfig),
    /// CHAP was chosen.
    Chosen(ChapConfig),
    /// A challenge was posed.
    Posed(ChapConfig, Challenge),
    /// It has.
    Done,
}

/// A login under way. One for each connection.
pub struct Login {
    entropy: Entropy,
    stage: Option<Stage>,
    /// Nothing makes a failed login good.
    failed: bool,
    /// ISID, TSIH and CID of the first request.
    first: Option<([u8; 6], u16, u16)>,
    identity: Option<Identity>,
    proving: Proving,
    params: Params,
    /// Keys that were settled: each may be only once.
    settled: Vec<String>,
    declared: bool,
    text: Vec<u8>,
    pieces: u32,
    requests: u32,
    text_bytes: usize,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// A status to send, and why, for the log.
type Refusal = (LoginStatus, String);

fn refuse<T>(status: LoginStatus, why: impl Into<String>) -> Result<T, Refusal> {
    Err((status, why.into()))
}

impl Login {
    /// A login of which nothing was heard.
    pub fn new(entropy: Entropy) -> Self {
        Self {
            entropy,
            stage: None,
            failed: false,
            first: None,
            identity: None,
            proving: Proving::NotNeeded,
            params: Params::default(),
            settled: Vec::new(),
            declared: false,
            text: Vec::new(),
            pieces: 0,
            requests: 0,
            text_bytes: 0,
        }
    }

    /// Takes a request with its text, and says how it goes on.
    ///
    /// # Errors
    /// [`Failure`]: the answer is to be sent, and the connection closed.
    pub fn step(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        policy: &dyn Policy,
    ) -> Result<Step, Failure> {
        let step = match self.failed {
            true => refuse(LoginStatus::InvalidRequest, "the login has failed before"),
            false => self.try_step(request, data, policy),
        };
        step.map_err(|(status, why)| {
            self.failed = true;
            let answer = LoginAnswer {
                transit: false,
                csg: request.csg,
                nsg: None,
                status,
                text: Vec::new(),
            };
            Failure { answer, why }
        })
    }

    fn try_step(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        policy: &dyn Policy,
    ) -> Result<Step, Refusal> {
        self.count(data)?;
        self.check_header(request)?;
        self.text.extend_from_slice(data);
        if request.continues {
            self.pieces += 1;
            if self.pieces >= MAX_PIECES {
                return refuse(LoginStatus::InitiatorError, "a text in too many pieces");
            }
            return Ok(Step::Answer(plain_answer(request.csg, Vec::new())));
        }
        self.pieces = 0;
        let text = std::mem::take(&mut self.text);
        let pairs = text::parse(&text)
            .map_err(|e| (LoginStatus::InitiatorError, format!("a text is not understood: {e}")))?;
        let mut answer = Writer::default();
        if self.identity.is_none() {
            self.identify(request, &pairs, policy, &mut answer)?;
        }
        match request.csg {
            Stage::Security => self.secure(&pairs, &mut answer)?,
            _ => self.operate(&pairs, &mut answer)?,
        }
        self.go_on(request, answer)
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.requests += 1;
        self.text_bytes += data.len();
        if self.requests > MAX_REQUESTS || self.text_bytes > MAX_TEXT_BYTES {
            return refuse(LoginStatus::InitiatorError, "a login without an end");
        }
        Ok(())
    }

    /// What the header alone must hold to (RFC 7143, 11.12 and 6.3).
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        if request.version_min > 0 {
            return refuse(LoginStatus::UnsupportedVersion, "another version is wanted");
        }
        if request.transit && request.continues {
            return refuse(LoginStatus::InvalidRequest, "a text that goes on ends no stage");
        }
        let name = (request.isid, request.tsih, request.cid);
        if *self.first.get_or_insert(name) != name {
            return refuse(LoginStatus::InitiatorError, "the session's name has changed");
        }
        let stage = *self.stage.get_or_insert(request.csg);
        if request.csg == Stage::FullFeature || request.csg != stage {
            return refuse(LoginStatus::InvalidRequest, "it is in another stage");
        }
        match request.nsg {
            Some(next) if (next as u8) <= (request.csg as u8) => {
                refuse(LoginStatus::InitiatorError, "the next stage does not come next")
            }
            _ => Ok(()),
        }
    }

    /// The first text: who wants what.
    fn identify(
        &mut self,
        request: &LoginRequest,
        pairs: &[(&str, &str)],
        policy: &dyn Policy,
        answer: &mut Writer,
    ) -> Result<(), Refusal> {
        let find = |key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let Some(name) = find("InitiatorName") else {
            return refuse(LoginStatus::MissingParameter, "the initiator gives no name");
        };
        let Some(initiator) = InitiatorName::new(name) else {
            return refuse(LoginStatus::InitiatorError, "the initiator's name is none");
        };
        let session = match find("SessionType") {
            Some("Discovery") => SessionKind::Discovery,
            None | Some("Normal") => {
                let Some(target) = find("TargetName") else {
                    return refuse(LoginStatus::MissingParameter, "no target is named");
                };
                let target = target.to_ascii_lowercase();
                let Access::Open { chap, alias } = policy.target(&target, &initiator) else {
                    let why = format!(
                        "{initiator} asks for {target:?}, which is not there or not for it"
                    );
                    return refuse(LoginStatus::NotFound, why);
                };
                self.proving = chap.map_or(Proving::NotNeeded, Proving::Needed);
                answer.pair("TargetPortalGroupTag", PORTAL_GROUP);
                if !alias.is_empty() {
                    answer.pair("TargetAlias", &alias);
                }
                SessionKind::Normal { target }
            }
            Some(_) => return refuse(LoginStatus::SessionType, "there are no such sessions"),
        };
        let (isid, tsih, cid) = (request.isid, request.tsih, request.cid);
        self.identity = Some(Identity { isid, tsih, cid, initiator, session });
        Ok(())
    }

    /// Whether a key only says again who wants what. One that says something else is an error.
    fn is_identity(&self, key: &str, value: &str) -> Result<bool, Refusal> {
        let Some(identity) = &self.identity else { return Ok(false) };
        let same = match (key, &identity.session) {
            ("InitiatorName", _) => value.eq_ignore_ascii_case(identity.initiator.as_str()),
            ("TargetName", SessionKind::Normal { target }) => value.eq_ignore_ascii_case(target),
            ("TargetName", SessionKind::Discovery) | ("InitiatorAlias", _) => true,
            ("SessionType", SessionKind::Normal { .. }) => value == "Normal",
            ("SessionType", SessionKind::Discovery) => value == "Discovery",
            _ => return Ok(false),
        };
        if same {
            Ok(true)
        } else {
            refuse(LoginStatus::InitiatorError, format!("{key} has changed"))
        }
    }

    /// The security stage (RFC 7143, section 12).
    fn secure(&mut self, pairs: &[(&str, &str)], answer: &mut Writer) -> Result<(), Refusal> {
        let mut proof = Proof::default();
        let mut algorithms = None;
        for (key, value) in pairs.iter().copied() {
            if self.is_identity(key, value)? || text::is_answer(value) {
                continue;
            }
            if key.starts_with("CHAP_") {
                self.settle_once(key)?;
            }
            match key {
                "AuthMethod" => self.choose(value, answer)?,
                "CHAP_A" => algorithms = Some(value),
                "CHAP_N" => proof.name = Some(value),
                "CHAP_R" => proof.response = Some(value),
                "CHAP_I" => proof.identifier = Some(value),
                "CHAP_C" => proof.challenge = Some(value),
                // Operational keys have their own stage; what is not known is told so in any.
                key if params::in_full_feature(key) == "Reject"
                    || key == params::declaration().0 =>
                {
                    let why = format!("{key} in the security stage");
                    return refuse(LoginStatus::InitiatorError, why);
                }
                key => answer.pair(key, "NotUnderstood"),
            }
        }
        self.prove(algorithms, &proof, answer)
    }

    /// AuthMethod: what both know, and what is needed.
    fn choose(&mut self, offered: &str, answer: &mut Writer) -> Result<(), Refusal> {
        self.settle_once("AuthMethod")?;
        let offers = |method| offered.split(',').any(|offer| offer == method);
        match std::mem::replace(&mut self.proving, Proving::NotNeeded) {
            Proving::Needed(config) if offers("CHAP") => {
                self.proving = Proving::Chosen(config);
                answer.pair("AuthMethod", "CHAP");
                Ok(())
            }
            Proving::NotNeeded if offers("None") => {
                answer.pair("AuthMethod", "None");
                Ok(())
            }
            Proving::NotNeeded => {
                let why = "the initiator insists on proof, and the target has no secret";
                refuse(LoginStatus::AuthenticationFailure, why)
            }
            _ => refuse(LoginStatus::AuthenticationFailure, "the initiator offers no CHAP"),
        }
    }

    /// One step of CHAP, if there is one to take.
    fn prove(
        &mut self,
        algorithms: Option<&str>,
        proof: &Proof<'_>,
        answer: &mut Writer,
    ) -> Result<(), Refusal> {
        let says_something = proof.name.is_some() || proof.response.is_some();
        match std::mem::replace(&mut self.proving, Proving::NotNeeded) {
            Proving::Chosen(config) if algorithms.is_some() => {
                if !algorithms.is_some_and(chap::is_known) {
                    let why = "the initiator knows none of our CHAP algorithms";
                    return refuse(LoginStatus::AuthenticationFailure, why);
                }
                let posed = Challenge::new(&mut self.entropy)
                    .map_err(|e| (LoginStatus::TargetError, e.to_string()))?;
                posed.pairs().iter().for_each(|(key, value)| answer.pair(key, value));
                self.proving = Proving::Posed(config, posed);
            }
            Proving::Posed(config, posed) if says_something => {
                let pairs = chap::check(&config, &posed, proof).map_err(|why| {
                    let who = self.identity.as_ref().map(|identity| identity.initiator.to_string());
                    let why = format!("CHAP of {}: {why}", who.unwrap_or_default());
                    (LoginStatus::AuthenticationFailure, why)
                })?;
                pairs.iter().for_each(|(key, value)| answer.pair(key, value));
                self.proving = Proving::Done;
            }
            Proving::Posed(..) => {
                let why = "the initiator does not answer the challenge";
                return refuse(LoginStatus::AuthenticationFailure, why);
            }
            before => self.proving = before,
        }
        Ok(())
    }

    fn is_proved(&self) -> bool {
        matches!(self.proving, Proving::NotNeeded | Proving::Done)
    }

    /// The operational stage (RFC 7143, section 13).
    fn operate(&mut self, pairs: &[(&str, &str)], answer: &mut Writer) -> Result<(), Refusal> {
        if !self.is_proved() {
            let why = "the initiator goes on without proving who it is";
            return refuse(LoginStatus::AuthenticationFailure, why);
        }
        let discovery =
            self.identity.as_ref().is_some_and(|who| who.session == SessionKind::Discovery);
        // What bounds another comes first.
        let is_bound = |pair: &&(&str, &str)| pair.0 == "MaxBurstLength";
        let ordered = pairs.iter().filter(is_bound).chain(pairs.iter().filter(|p| !is_bound(p)));
        for (key, value) in ordered.copied() {
            if self.is_identity(key, value)? || text::is_answer(value) {
                continue;
            }
            if key == "AuthMethod" || key.starts_with("CHAP_") {
                let why = format!("{key} in the operational stage");
                return refuse(LoginStatus::InitiatorError, why);
            }
            self.settle_once(key)?;
            if let Reply::Value(value) = self.params.settle(key, value, discovery) {
                answer.pair(key, &value);
            }
        }
        if !std::mem::replace(&mut self.declared, true) {
            let (key, value) = params::declaration();
            answer.pair(key, &value);
        }
        Ok(())
    }

    /// RFC 7143, 6.2: a key is settled once in a login.
    fn settle_once(&mut self, key: &str) -> Result<(), Refusal> {
        if self.settled.iter().any(|settled| settled == key) {
            return refuse(LoginStatus::InitiatorError, format!("{key} comes twice"));
        }
        self.settled.push(key.to_owned());
        Ok(())
    }

    /// The answer, and the next stage if both are ready for it.
    fn go_on(&mut self, request: &LoginRequest, answer: Writer) -> Result<Step, Refusal> {
        let mut answer = plain_answer(request.csg, answer.finish());
        // Without proof the initiator stays where it is; with it, it goes where it wants.
        let Some(next) = request.nsg.filter(|_| request.transit && self.is_proved()) else {
            return Ok(Step::Answer(answer));
        };
        answer.transit = true;
        answer.nsg = Some(next);
        self.stage = Some(next);
        if next != Stage::FullFeature {
            return Ok(Step::Answer(answer));
        }
        let Some(identity) = self.identity.take() else {
            return refuse(LoginStatus::MissingParameter, "nobody was named");
        };
        self.params.finish();
        let Identity { isid, tsih, cid, initiator, session } = identity;
        let agreed = Agreed { initiator, isid, tsih, cid, session, params: self.params };
        Ok(Step::Done(answer, Box::new(agreed)))
    }
}

fn plain_answer(csg: Stage, text: Vec<u8>) -> LoginAnswer {
    LoginAnswer { transit: false, csg, nsg: None, status: LoginStatus::Success, text }
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;

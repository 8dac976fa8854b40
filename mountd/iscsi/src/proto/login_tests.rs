use super::*;
use crate::proto::Serial;
use crate::proto::chap::Credentials;

const NAME: &str = "iqn.1993-08.org.debian:01:web";
const TARGET: &str = "iqn.2026-11.x:disk";

struct Door(Option<ChapConfig>);

impl Policy for Door {
    fn target(&self, name: &str, _: &InitiatorName) -> Access {
        match name == TARGET {
            true => Access::Open { chap: self.0.clone(), alias: "a disk".into() },
            false => Access::NotFound,
        }
    }
}

fn secrets() -> ChapConfig {
    let side = |name: &str, secret: &[u8]| Credentials { name: name.into(), secret: secret.into() };
    ChapConfig {
        initiator: side("web", b"sixteen bytes ok"),
        target: Some(side("us", b"another secret..")),
    }
}

fn login() -> Login {
    Login::new(Box::new(|bytes: &mut [u8]| {
        bytes.fill(7);
        Ok(())
    }))
}

fn request(csg: Stage, nsg: Option<Stage>) -> LoginRequest {
    LoginRequest {
        transit: nsg.is_some(),
        continues: false,
        csg,
        nsg,
        version_max: 0,
        version_min: 0,
        isid: [0x40, 0, 0, 0, 0, 1],
        tsih: 0,
        initiator_task_tag: 1,
        cid: 1,
        cmd_sn: Serial::new(1),
        exp_stat_sn: Serial::new(0),
    }
}

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::default();
    pairs.iter().for_each(|(key, value)| writer.pair(key, value));
    writer.finish()
}

fn who() -> Vec<(&'static str, &'static str)> {
    vec![("InitiatorName", NAME), ("SessionType", "Normal"), ("TargetName", TARGET)]
}

fn and(
    mut pairs: Vec<(&'static str, &'static str)>,
    more: &[(&'static str, &'static str)],
) -> Vec<u8> {
    pairs.extend(more);
    text(&pairs)
}

fn answered(answer: &LoginAnswer) -> Vec<(&str, &str)> {
    text::parse(&answer.text).unwrap()
}

fn status(result: Result<Step, Failure>) -> LoginStatus {
    result.unwrap_err().answer.status
}

#[test]
fn straight_to_the_end() {
    let data =
        and(who(), &[("HeaderDigest", "CRC32C,None"), ("MaxRecvDataSegmentLength", "65536")]);
    let step =
        login().step(&request(Stage::Operational, Some(Stage::FullFeature)), &data, &Door(None));
    let Ok(Step::Done(answer, agreed)) = step else { panic!("{step:?}") };
    assert_eq!((answer.transit, answer.nsg), (true, Some(Stage::FullFeature)));
    assert_eq!(
        answered(&answer),
        [
            ("TargetPortalGroupTag", "1"),
            ("TargetAlias", "a disk"),
            ("HeaderDigest", "CRC32C"),
            ("MaxRecvDataSegmentLength", "262144")
        ]
    );
    assert_eq!(agreed.session, SessionKind::Normal { target: TARGET.into() });
    assert!(agreed.params.header_digest && !agreed.params.data_digest);
    assert_eq!(agreed.params.max_recv_data_segment_length, 65_536);
}

#[test]
fn through_all_stages_with_mutual_chap() {
    let (mut login, door) = (login(), Door(Some(secrets())));
    let security = |next| request(Stage::Security, next);
    let Ok(Step::Answer(answer)) = login.step(
        &security(Some(Stage::Operational)),
        &and(who(), &[("AuthMethod", "CHAP,None")]),
        &door,
    ) else {
        panic!()
    };
    assert!(!answer.transit, "not without proof");
    assert!(answered(&answer).contains(&("AuthMethod", "CHAP")));
    let Ok(Step::Answer(answer)) = login.step(&security(None), &text(&[("CHAP_A", "7,5")]), &door)
    else {
        panic!()
    };
    let posed: Vec<(String, String)> =
        answered(&answer).iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let value = |key: &str| posed.iter().find(|(k, _)| k == key).unwrap().1.clone();
    assert_eq!(value("CHAP_A"), "5");
    let digest = |id: u8, secret: &[u8], challenge: &[u8]| {
        use md5::Digest as _;
        let mut sum = md5::Md5::new();
        sum.update([id]);
        sum.update(secret);
        sum.update(challenge);
        text::to_hexadecimal(&sum.finalize())
    };
    let challenge = text::binary(&value("CHAP_C"), 64).unwrap();
    let response = digest(value("CHAP_I").parse().unwrap(), b"sixteen bytes ok", &challenge);
    let proof =
        [("CHAP_N", "web"), ("CHAP_R", response.as_str()), ("CHAP_I", "3"), ("CHAP_C", "0x010203")];
    let Ok(Step::Answer(answer)) =
        login.step(&security(Some(Stage::Operational)), &text(&proof), &door)
    else {
        panic!()
    };
    assert!(answer.transit);
    let own = digest(3, b"another secret..", &[1, 2, 3]);
    assert_eq!(answered(&answer), [("CHAP_N", "us"), ("CHAP_R", own.as_str())]);
    // libiscsi says again who it is.
    let data = and(who(), &[("InitialR2T", "No")]);
    let Ok(Step::Answer(answer)) = login.step(&request(Stage::Operational, None), &data, &door)
    else {
        panic!()
    };
    assert!(!answer.transit);
    let step = login.step(&request(Stage::Operational, Some(Stage::FullFeature)), b"", &door);
    let Ok(Step::Done(_, agreed)) = step else { panic!() };
    assert!(!agreed.params.initial_r2t);
}

#[test]
fn without_proof_nobody_comes_in() {
    let door = || Door(Some(secrets()));
    let security = |next| request(Stage::Security, next);
    let full = Some(Stage::FullFeature);
    // Not by going on, not by saying nothing, not by another method, not by a wrong answer.
    assert_eq!(
        status(login().step(&request(Stage::Operational, full), &text(&who()), &door())),
        LoginStatus::AuthenticationFailure
    );
    let mut silent = login();
    let Ok(Step::Answer(answer)) = silent.step(&security(full), &text(&who()), &door()) else {
        panic!()
    };
    assert!(!answer.transit);
    assert_eq!(
        status(login().step(&security(full), &and(who(), &[("AuthMethod", "None")]), &door())),
        LoginStatus::AuthenticationFailure
    );
    let begun = |algorithms| {
        let mut login = login();
        login.step(&security(None), &and(who(), &[("AuthMethod", "CHAP")]), &door()).unwrap();
        let step = login.step(&security(None), &text(&[("CHAP_A", algorithms)]), &door());
        (login, step)
    };
    assert_eq!(status(begun("6,7").1), LoginStatus::AuthenticationFailure);
    let (mut login, _) = begun("5");
    let wrong = text(&[("CHAP_N", "web"), ("CHAP_R", "0x00112233445566778899aabbccddeeff")]);
    assert_eq!(
        status(login.step(&security(full), &wrong, &door())),
        LoginStatus::AuthenticationFailure
    );
    let (mut login, _) = begun("5");
    assert_eq!(
        status(login.step(&security(full), b"", &door())),
        LoginStatus::AuthenticationFailure
    );
    let (mut login, _) = begun("5");
    let again = and(vec![("AuthMethod", "None")], &[]);
    assert!(login.step(&security(full), &again, &door()).is_err(), "a second choice");
}

#[test]
fn what_is_missing_or_wrong_is_told() {
    let full = Some(Stage::FullFeature);
    let ask = |request: &LoginRequest, pairs: &[(&str, &str)]| {
        status(login().step(request, &text(pairs), &Door(None)))
    };
    let operational = request(Stage::Operational, full);
    assert_eq!(ask(&operational, &[("TargetName", TARGET)]), LoginStatus::MissingParameter);
    assert_eq!(ask(&operational, &[("InitiatorName", NAME)]), LoginStatus::MissingParameter);
    assert_eq!(
        ask(&operational, &[("InitiatorName", "no name"), ("TargetName", TARGET)]),
        LoginStatus::InitiatorError
    );
    assert_eq!(
        ask(&operational, &[("InitiatorName", NAME), ("TargetName", "iqn.2026-11.x:other")]),
        LoginStatus::NotFound
    );
    assert_eq!(
        ask(&operational, &[("InitiatorName", NAME), ("SessionType", "Odd")]),
        LoginStatus::SessionType
    );
    let mut newer = operational.clone();
    newer.version_min = 1;
    assert_eq!(ask(&newer, &who()), LoginStatus::UnsupportedVersion);
    assert_eq!(ask(&request(Stage::FullFeature, None), &who()), LoginStatus::InvalidRequest);
    let twice = [who(), vec![("HeaderDigest", "None"), ("HeaderDigest", "CRC32C")]].concat();
    assert_eq!(ask(&operational, &twice), LoginStatus::InitiatorError);
    let misplaced = [who(), vec![("InitialR2T", "No")]].concat();
    assert_eq!(ask(&request(Stage::Security, full), &misplaced), LoginStatus::InitiatorError);
    let misplaced = [who(), vec![("AuthMethod", "None")]].concat();
    assert_eq!(ask(&operational, &misplaced), LoginStatus::InitiatorError);
}

#[test]
fn the_sessions_name_does_not_change() {
    let changes: [fn(&mut LoginRequest); 3] = [|r| r.isid[0] = 9, |r| r.tsih = 9, |r| r.cid = 9];
    for change in changes {
        let mut login = login();
        login.step(&request(Stage::Operational, None), &text(&who()), &Door(None)).unwrap();
        let mut next = request(Stage::Operational, Some(Stage::FullFeature));
        change(&mut next);
        assert_eq!(status(login.step(&next, b"", &Door(None))), LoginStatus::InitiatorError);
    }
    let mut login = login();
    login.step(&request(Stage::Operational, None), &text(&who()), &Door(None)).unwrap();
    let other = text(&[("TargetName", "iqn.2026-11.x:other")]);
    assert_eq!(
        status(login.step(&request(Stage::Operational, None), &other, &Door(None))),
        LoginStatus::InitiatorError
    );
}

#[test]
fn discovery_needs_no_target() {
    let data = text(&[("InitiatorName", NAME), ("SessionType", "Discovery"), ("InitialR2T", "No")]);
    let step = login().step(
        &request(Stage::Operational, Some(Stage::FullFeature)),
        &data,
        &Door(Some(secrets())),
    );
    let Ok(Step::Done(answer, agreed)) = step else { panic!() };
    assert_eq!(agreed.session, SessionKind::Discovery);
    assert!(answered(&answer).contains(&("InitialR2T", "Irrelevant")));
}

/// However a text is cut into PDUs, the outcome is the same.
#[test]
fn texts_come_in_pieces() {
    let data = and(who(), &[("MaxBurstLength", "65536"), ("X-odd", "1")]);
    let whole = {
        let step = login().step(
            &request(Stage::Operational, Some(Stage::FullFeature)),
            &data,
            &Door(None),
        );
        let Ok(Step::Done(answer, agreed)) = step else { panic!() };
        (answer, agreed)
    };
    for cut in 1..data.len() {
        let mut login = login();
        let mut first = request(Stage::Operational, None);
        first.continues = true;
        let Ok(Step::Answer(answer)) = login.step(&first, &data[..cut], &Door(None)) else {
            panic!()
        };
        assert_eq!((answer.transit, answer.text.len()), (false, 0));
        let step = login.step(
            &request(Stage::Operational, Some(Stage::FullFeature)),
            &data[cut..],
            &Door(None),
        );
        let Ok(Step::Done(answer, agreed)) = step else { panic!("{step:?}") };
        assert_eq!((answer, agreed), (whole.0.clone(), whole.1.clone()));
    }
}

#[test]
fn logins_without_an_end_are_ended() {
    let mut endless = login();
    let ask = request(Stage::Operational, None);
    let rounds = (0..).find(|_| endless.step(&ask, &text(&who()), &Door(None)).is_err());
    assert_eq!(rounds, Some(64));
    let mut long = login();
    let mut more = request(Stage::Operational, None);
    more.continues = true;
    let pieces = (0..).find(|_| long.step(&more, b"K", &Door(None)).is_err());
    assert_eq!(pieces, Some(15));
    let mut large = login();
    let pieces = (0..).find(|_| large.step(&more, &[b'K'; 8192], &Door(None)).is_err());
    assert_eq!(pieces, Some(8));
}

#[test]
fn x_node_architecture() {
    let data = and(who(), &[("X#NodeArchitecture", "linux,v1")]);
    let step =
        login().step(&request(Stage::Operational, Some(Stage::FullFeature)), &data, &Door(None));
    assert!(matches!(step, Ok(Step::Done(..))), "{step:?}");
}

#[test]
fn a_failed_proof_is_not_forgotten() {
    let (mut login, door) = (login(), Door(Some(secrets())));
    let security = |next| request(Stage::Security, next);
    let _ = login.step(&security(None), &and(who(), &[("AuthMethod", "CHAP")]), &door);
    let _ = login.step(&security(None), &text(&[("CHAP_A", "5")]), &door);
    let bad = text(&[("CHAP_N", "web"), ("CHAP_R", "0x00000000000000000000000000000000")]);
    assert!(login.step(&security(None), &bad, &door).is_err());
    let step = login.step(&security(Some(Stage::FullFeature)), &[], &door);
    assert!(step.is_err(), "past CHAP: {step:?}");
}

#[test]
fn no_offer_of_chap_is_not_forgotten() {
    let (mut login, door) = (login(), Door(Some(secrets())));
    let security = |next| request(Stage::Security, next);
    assert!(login.step(&security(None), &and(who(), &[("AuthMethod", "None")]), &door).is_err());
    let step = login.step(&security(Some(Stage::FullFeature)), &[], &door);
    assert!(step.is_err(), "past CHAP: {step:?}");
}

#[test]
fn first_burst_answer_within_max_burst() {
    let data = and(who(), &[("MaxBurstLength", "8192"), ("FirstBurstLength", "262144")]);
    let step =
        login().step(&request(Stage::Operational, Some(Stage::FullFeature)), &data, &Door(None));
    let Ok(Step::Done(answer, agreed)) = step else { panic!("{step:?}") };
    let told =
        answered(&answer).iter().find(|(k, _)| *k == "FirstBurstLength").unwrap().1.to_owned();
    assert_eq!(told, agreed.params.first_burst_length.to_string());
}

#[test]
fn the_sessions_name_stays_between_pieces() {
    let mut login = login();
    let mut first = request(Stage::Operational, None);
    first.continues = true;
    assert!(login.step(&first, b"Init", &Door(None)).is_ok());
    let mut second = request(Stage::Operational, None);
    second.isid = [9; 6];
    let rest = &and(who(), &[])[4..];
    assert!(login.step(&second, rest, &Door(None)).is_err());
}

#[test]
fn a_key_of_chap_comes_once() {
    let (mut login, door) = (login(), Door(Some(secrets())));
    let security = |next| request(Stage::Security, next);
    let _ = login.step(&security(None), &and(who(), &[("AuthMethod", "CHAP")]), &door);
    let step = login.step(&security(None), &text(&[("CHAP_A", "9"), ("CHAP_A", "5")]), &door);
    assert!(step.is_err(), "{step:?}");
}

#[test]
fn task_reporting_means_nothing_in_discovery() {
    let data = text(&[
        ("InitiatorName", NAME),
        ("SessionType", "Discovery"),
        ("TaskReporting", "RFC3720"),
        ("iSCSIProtocolLevel", "1"),
    ]);
    let step =
        login().step(&request(Stage::Operational, Some(Stage::FullFeature)), &data, &Door(None));
    let Ok(Step::Done(answer, _)) = step else { panic!("{step:?}") };
    assert!(
        answered(&answer).contains(&("TaskReporting", "Irrelevant")),
        "{:?}",
        answered(&answer)
    );
}

#[test]
fn not_understood_is_not_answered() {
    let data = and(who(), &[("TargetAlias", "NotUnderstood")]);
    let step =
        login().step(&request(Stage::Operational, Some(Stage::FullFeature)), &data, &Door(None));
    let Ok(Step::Done(answer, _)) = step else { panic!("{step:?}") };
    assert!(
        !answered(&answer).contains(&("TargetAlias", "NotUnderstood")),
        "{:?}",
        answered(&answer)
    );
}

#[test]
fn what_goes_on_ends_no_stage() {
    let mut both = request(Stage::Operational, Some(Stage::FullFeature));
    both.continues = true;
    assert!(login().step(&both, b"", &Door(None)).is_err());
}

#[test]
fn sixteen_pieces() {
    let mut login = login();
    let mut piece = request(Stage::Operational, None);
    piece.continues = true;
    for i in 0..15 {
        assert!(login.step(&piece, b"", &Door(None)).is_ok(), "{i}");
    }
}

//! The common name in a certificate (X.509, in DER). The certificate has been verified before, so
//! anything odd is just no name.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// The version of a certificate, `[0]`.
const VERSION: u8 = 0xa0;
/// 2.5.4.3, commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Takes one value off the front: its tag and its content.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // One to three bytes of length: certificates are far smaller than 16 MiB.
        0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (len.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    Some((*tag, content))
}

fn take_as<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    take(bytes).filter(|(own, _)| *own == tag).map(|(_, content)| content)
}

/// The common name of a certificate's subject: the last one, which is the most special.
pub(super) fn common_name(mut certificate: &[u8]) -> Option<String> {
    let mut whole = take_as(&mut certificate, SEQUENCE)?;
    let mut body = take_as(&mut whole, SEQUENCE)?;
    if body.first() == Some(&VERSION) {
        take(&mut body)?;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        take(&mut body)?;
    }
    let mut subject = take_as(&mut body, SEQUENCE)?;
    let mut found = None;
    while let Some(mut set) = take_as(&mut subject, SET) {
        while let Some(mut attribute) = take_as(&mut set, SEQUENCE) {
            if take_as(&mut attribute, OBJECT_ID)? != COMMON_NAME {
                continue;
            }
            let (tag, text) = take(&mut attribute)?;
            if matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) {
                found = std::str::from_utf8(text).ok().map(str::to_owned);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_certificates_and_of_anything_else() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let long = format!("ä{}", "x".repeat(200));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Org");
        params.distinguished_name.push(rcgen::DnType::CommonName, long.as_str());
        let certificate = params.self_signed(&key).unwrap();
        let der = certificate.der();
        assert_eq!(common_name(der), Some(long));
        for cut in 0..der.len() {
            assert_eq!(common_name(&der[..cut]), None, "cut at {cut}");
        }
        // Any byte may be another: no panic.
        for at in 0..der.len() {
            for byte in [0, 0x7f, 0x80, 0x83, 0xff] {
                let mut other = der.to_vec();
                other[at] = byte;
                common_name(&other);
            }
        }
    }
}

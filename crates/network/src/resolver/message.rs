//! Questions and answers (RFC 1035), both from people who may mean harm.
//!
//! A container's question is read whole, and what is sent to a name server is made anew from what was understood. A name
//! server's answer is passed on as it is once it is known to be the answer to that question; only where its addresses mean
//! something to us is it read whole, too.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Longest question that is read: more than a name, a header and the options that anybody sends.
pub(crate) const MAX_QUESTION: usize = 1232;
/// What every client of UDP takes (RFC 1035, 4.2.1), and what ours get at most.
const UDP_LIMITS: (u16, u16) = (512, 4096);
/// What is said to those who ask how much we take (RFC 9715).
const OWN_LIMIT: u16 = 1232;
/// How long a container's address may be believed: it has another one after a while.
const OWN_TTL: u32 = 5;
/// Longest row of names that stand for each other.
const MAX_ALIASES: usize = 16;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One question of a container.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    /// How much the client takes by UDP, and whether it wants DNSSEC's records.
    edns: Option<(u16, bool)>,
}

/// Why there is no question: what to say to the client, or nothing where nothing can be said.
#[derive(Debug)]
pub(crate) struct Unreadable(pub(crate) Option<Vec<u8>>);

/// An answer that belongs to a question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked {
    pub(crate) is_truncated: bool,
    /// The server could or would not.
    pub(crate) is_failure: bool,
}

impl Question {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let header = Header::from_bytes(bytes).map_err(|_| Unreadable(None))?;
        if header.message_type != MessageType::Query {
            return Err(Unreadable(None));
        }
        let complaint = |code| {
            let message = Message::error_msg(header.id, header.op_code, code);
            Unreadable(message.to_vec().ok())
        };
        if header.op_code != OpCode::Query {
            return Err(complaint(ResponseCode::NotImp));
        }
        let counts = header.counts;
        let message = match Message::from_vec(bytes) {
            Ok(message) if counts.queries == 1 && counts.answers == 0 && counts.authorities == 0 => message,
            _ => return Err(complaint(ResponseCode::FormErr)),
        };
        let query = message.queries.into_iter().next().ok_or(Unreadable(None))?;
        let edns = message.edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
        let Header { metadata, .. } = header;
        Ok(Self {
            id: metadata.id,
            query,
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
            edns,
        })
    }

    /// The name in small letters and without a dot at its end, if it is made of what host names are made of.
    pub(crate) fn name(&self) -> Option<String> {
        text_of(&self.query.name)
    }

    /// Whether it asks for addresses of a family.
    pub(crate) fn wants(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.query.query_type == RecordType::A,
            IpAddr::V6(_) => self.query.query_type == RecordType::AAAA,
        }
    }

    pub(crate) fn is_of_the_internet(&self) -> bool {
        self.query.query_class == DNSClass::IN
    }

    /// The question for a name server, under a number that nobody else knows.
    pub(crate) fn forward(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if let Some((_, dnssec_ok)) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OWN_LIMIT).set_dnssec_ok(dnssec_ok);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// What an answer is, if it is one to this question as it was forwarded.
    pub(crate) fn check(&self, id: u16, answer: &[u8]) -> Option<Checked> {
        let mut decoder = BinDecoder::new(answer);
        let header = Header::read(&mut decoder).ok()?;
        if header.id != id || header.message_type != MessageType::Response || header.op_code != OpCode::Query
        {
            return None;
        }
        let is_failure = matches!(
            header.response_code,
            ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp | ResponseCode::FormErr
        );
        // A server that does not understand may leave the question out.
        let is_fitting = match header.counts.queries {
            0 => is_failure,
            1 => Query::read(&mut decoder).is_ok_and(|query| {
                query.name == self.query.name
                    && query.query_type == self.query.query_type
                    && query.query_class == self.query.query_class
            }),
            _ => false,
        };
        is_fitting.then_some(Checked { is_truncated: header.truncation, is_failure })
    }

    /// A name server's answer for the client: under the client's number, and no longer than it takes.
    pub(crate) fn pass_on(&self, mut answer: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        if transport == Transport::Udp && answer.len() > usize::from(self.limit()) {
            let header = Header::from_bytes(&answer).ok()?;
            let mut short = self.response(header.response_code);
            short.metadata.truncation = true;
            return short.to_vec().ok();
        }
        answer.get_mut(..2)?.copy_from_slice(&self.id.to_be_bytes());
        Some(answer)
    }

    /// An answer of our own: these addresses, as far as they were asked for.
    pub(crate) fn answer(&self, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        for address in addresses.iter().filter(|address| self.wants(**address)) {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            message.add_answer(Record::from_rdata(self.query.name.clone(), OWN_TTL, data));
        }
        message.to_vec().ok()
    }

    /// There is no such name, for this client. Some libraries wait for somebody else where they are refused.
    pub(crate) fn deny(&self) -> Option<Vec<u8>> {
        self.response(ResponseCode::NXDomain).to_vec().ok()
    }

    /// Nobody could say.
    pub(crate) fn fail(&self) -> Option<Vec<u8>> {
        self.response(ResponseCode::ServFail).to_vec().ok()
    }

    /// The addresses that an answer gives the name, by whatever other names, and for how many seconds. `None` where it
    /// cannot be read.
    pub(crate) fn addresses(&self, answer: &[u8]) -> Option<Vec<(IpAddr, u32)>> {
        let message = Message::from_vec(answer).ok()?;
        let of_class = |record: &&Record| record.dns_class == DNSClass::IN;
        let mut names = vec![(&self.query.name, u32::MAX)];
        // Each name is in the answer once, in whatever order.
        for _ in 0..MAX_ALIASES {
            let Some((last, ttl)) = names.last().copied() else { break };
            let next = message.answers.iter().filter(of_class).find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *last => Some((&target.0, record.ttl.min(ttl))),
                _ => None,
            });
            match next {
                Some(next) if !names.iter().any(|(name, _)| *name == next.0) => names.push(next),
                _ => break,
            }
        }
        let addresses = message.answers.iter().filter(of_class).filter_map(|record| {
            let (_, ttl) = names.iter().find(|(name, _)| **name == record.name)?;
            let address = match &record.data {
                RData::A(address) => IpAddr::V4(address.0),
                RData::AAAA(address) => IpAddr::V6(address.0),
                _ => return None,
            };
            Some((address, record.ttl.min(*ttl)))
        });
        Some(addresses.collect())
    }

    fn limit(&self) -> u16 {
        let (least, most) = UDP_LIMITS;
        self.edns.map_or(least, |(limit, _)| limit.clamp(least, most))
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(OWN_LIMIT);
            message.set_edns(edns);
        }
        message
    }
}

fn text_of(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(known) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::CNAME;

    use super::*;

    fn asked(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn question(name: &str) -> Question {
        Question::read(&asked(name, RecordType::A)).unwrap()
    }

    fn record(name: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
    }

    fn reply(question: &Question, id: u16, answers: Vec<Record>) -> Message {
        let mut message = Message::response(id, OpCode::Query);
        message.add_query(question.query.clone());
        message.add_answers(answers);
        message
    }

    #[test]
    fn a_question_is_forwarded_under_another_number_and_answered_under_its_own() {
        let question = question("Example.COM.");
        assert_eq!(question.name().unwrap(), "example.com");
        let forwarded = Question::read(&question.forward(5).unwrap()).unwrap();
        assert_eq!((forwarded.id, &forwarded.query), (5, &question.query));
        let answer = reply(&question, 5, vec![record("example.com.", 9, RData::A(A([192, 0, 2, 1].into())))]);
        let bytes = answer.to_vec().unwrap();
        assert!(!question.check(5, &bytes).unwrap().is_failure);
        let passed = Message::from_vec(&question.pass_on(bytes, Transport::Udp).unwrap()).unwrap();
        assert_eq!((passed.id, passed.answers.len()), (77, 1));
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_not_taken_for_one() {
        let question = question("example.com.");
        let fine = reply(&question, 5, vec![]);
        assert!(question.check(5, &fine.to_vec().unwrap()).is_some());
        assert!(question.check(6, &fine.to_vec().unwrap()).is_none());
        assert!(question.check(5, &question.forward(5).unwrap()).is_none());
        let other = super::Question::read(&asked("example.org.", RecordType::A)).unwrap();
        assert!(question.check(5, &reply(&other, 5, vec![]).to_vec().unwrap()).is_none());
        let other = super::Question::read(&asked("example.com.", RecordType::AAAA)).unwrap();
        assert!(question.check(5, &reply(&other, 5, vec![]).to_vec().unwrap()).is_none());
        assert!(question.check(5, &[]).is_none());
    }

    #[test]
    fn only_addresses_of_the_name_count() {
        let question = question("a.example.");
        let (own, other) = (IpAddr::from([192, 0, 2, 1]), [192, 0, 2, 2]);
        let answers = vec![
            record("c.example.", 30, RData::A(A([192, 0, 2, 1].into()))),
            record("b.example.", 20, RData::CNAME(CNAME(Name::from_ascii("c.example.").unwrap()))),
            record("a.example.", 60, RData::CNAME(CNAME(Name::from_ascii("b.example.").unwrap()))),
            record("elsewhere.example.", 30, RData::A(A(other.into()))),
        ];
        let bytes = reply(&question, 5, answers).to_vec().unwrap();
        assert_eq!(question.addresses(&bytes).unwrap(), [(own, 20)]);
        // Names that lead to themselves end.
        let to = |name: &str| RData::CNAME(CNAME(Name::from_ascii(name).unwrap()));
        let answers =
            vec![record("a.example.", 1, to("b.example.")), record("b.example.", 1, to("a.example."))];
        assert_eq!(question.addresses(&reply(&question, 5, answers).to_vec().unwrap()).unwrap(), []);
        assert!(question.addresses(&bytes[..bytes.len() - 1]).is_none());
    }

    #[test]
    fn what_is_too_long_for_udp_is_cut_and_said_to_be() {
        let question = question("a.example.");
        let answers =
            (0..100).map(|last| record("a.example.", 1, RData::A(A([192, 0, 2, last].into())))).collect();
        let bytes = reply(&question, 5, answers).to_vec().unwrap();
        let cut = question.pass_on(bytes.clone(), Transport::Udp).unwrap();
        let message = Message::from_vec(&cut).unwrap();
        assert!(cut.len() <= 512 && message.truncation && message.answers.is_empty());
        let whole = Message::from_vec(&question.pass_on(bytes, Transport::Tcp).unwrap()).unwrap();
        assert_eq!(whole.answers.len(), 100);
    }

    #[test]
    fn what_is_no_question_is_told_or_dropped() {
        for garbage in [&b""[..], b"x", &[0; 11], &[0xff; 600]] {
            assert!(matches!(Question::read(garbage), Err(Unreadable(None))));
        }
        let code = |bytes: &[u8]| match Question::read(bytes) {
            Err(Unreadable(Some(reply))) => Message::from_vec(&reply).unwrap().response_code,
            other => panic!("{other:?}"),
        };
        let mut none = asked("example.com.", RecordType::A);
        none[5] = 0;
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut short = asked("example.com.", RecordType::A);
        short.truncate(20);
        assert_eq!(code(&short), ResponseCode::FormErr);
        // A name that points to itself.
        let mut looped = asked("example.com.", RecordType::A);
        looped[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(code(&looped), ResponseCode::FormErr);
        let mut update = asked("example.com.", RecordType::A);
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        assert_eq!(question("a\\.b.example.").name(), None);
    }

    #[test]
    fn an_answer_of_our_own_has_what_was_asked_for() {
        let addresses = [IpAddr::from([192, 0, 2, 1]), "fd00::1".parse().unwrap()];
        let message = Message::from_vec(&question("web.").answer(&addresses).unwrap()).unwrap();
        assert_eq!(message.answers.len(), 1);
        let other = Question::read(&asked("web.", RecordType::MX)).unwrap();
        let message = Message::from_vec(&other.answer(&addresses).unwrap()).unwrap();
        assert_eq!((message.answers.len(), message.response_code), (0, ResponseCode::NoError));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), flips in
                            proptest::collection::vec((0usize..200, proptest::prelude::any::<u8>()), 0..6)) {
            let _ = Question::read(&bytes);
            let question = question("a.example.");
            let alias = RData::CNAME(CNAME(Name::from_ascii("b.example.").unwrap()));
            let answers = vec![
                record("a.example.", 1, alias),
                record("b.example.", 1, RData::A(A([192, 0, 2, 1].into()))),
            ];
            let mut answer = reply(&question, 5, answers).to_vec().unwrap();
            for (at, with) in flips {
                if let Some(byte) = answer.get_mut(at) {
                    *byte ^= with;
                }
            }
            for answer in [&answer, &bytes] {
                let _ = question.check(5, answer);
                let _ = question.addresses(answer);
                let _ = question.pass_on(answer.clone(), Transport::Udp);
            }
        }
    }
}

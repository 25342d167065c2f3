//! The steps of a rule: what the packet filter loads, compares and does, one after the other.
//!
//! Registers are 32 bits wide and are numbered from [`KEY`]; a value takes as many as it needs.

use super::netlink::Attributes;

/// Where a key is put together.
pub(super) const KEY: u32 = 8;
/// Where a target is: an address, then a port.
pub(super) const TARGET: u32 = 12;
/// Where a label is.
pub(super) const LABEL: u32 = 20;

/// The length of a label in bytes.
pub(super) const LABEL_LENGTH: usize = 16;

const NAME: u16 = 1;
const DATA: u16 = 2;
const ELEMENT: u16 = 1;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_PROTOCOL: u32 = 10;
const CT_PROTO_DST: u32 = 12;
const CT_LABELS: u32 = 13;
const STATE_INVALID: u32 = 1;
const STATE_NEW: u32 = 1 << 3;
/// `IPS_ASSURED`: of TCP, the client has answered the answer.
const ASSURED: u32 = 1 << 2;
const REPLY: u8 = 1;

/// Flags of TCP.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The protocols of errors: ICMP, and that of IPv6.
const ERRORS: [u8; 2] = [1, 58];

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const FIB_OIF: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
const FIB_IIF: u32 = 8;
const FIB_PRESENT: u32 = 32;
/// `RTN_LOCAL`
const LOCAL: u32 = 2;

const DROP: u32 = 0;
const RETURN: i32 = -5;
const GOTO: i32 = -4;

/// The address family of IPv4, as the packet filter counts.
pub(super) const IPV4: u8 = 2;
/// Of IPv6.
pub(super) const IPV6: u8 = 10;

/// A rule, as it is made.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule(Attributes);

impl Rule {
    fn step(self, name: &str, data: &Attributes) -> Self {
        let step = Attributes::default().text(NAME, name).nest(DATA, data);
        Self(self.0.nest(ELEMENT, &step))
    }

    pub(super) fn steps(&self) -> &Attributes {
        &self.0
    }

    fn load_meta(self, key: u32, to: u32) -> Self {
        let data = Attributes::default().number(1, to).number(2, key);
        self.step("meta", &data)
    }

    fn compare(self, register: u32, operation: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(VALUE, value);
        let data = Attributes::default()
            .number(1, register)
            .number(2, operation)
            .nest(3, &value);
        self.step("cmp", &data)
    }

    fn equals(self, register: u32, value: &[u8]) -> Self {
        self.compare(register, 0, value)
    }

    fn masked(self, register: u32, mask: &[u8]) -> Self {
        let zero = vec![0; mask.len()];
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::default()
            .number(1, register)
            .number(2, register)
            .number(3, length)
            .nest(4, &Attributes::default().bytes(VALUE, mask))
            .nest(5, &Attributes::default().bytes(VALUE, &zero));
        self.step("bitwise", &data)
    }

    /// Only what came from another host or another namespace.
    pub(super) fn came_by_loopback(self) -> Self {
        // The loopback device is the first one of every network.
        self.load_meta(META_IIF, KEY)
            .equals(KEY, &1_u32.to_ne_bytes())
    }

    /// Only packets of this family.
    pub(super) fn family(self, family: u8) -> Self {
        self.load_meta(META_NFPROTO, KEY).equals(KEY, &[family])
    }

    /// Only packets of TCP.
    pub(super) fn over_tcp(self) -> Self {
        self.load_meta(META_L4PROTO, KEY).equals(KEY, &[6])
    }

    /// Only datagrams.
    pub(super) fn over_udp(self) -> Self {
        self.load_meta(META_L4PROTO, KEY).equals(KEY, &[17])
    }

    /// Only what this program marked so itself.
    pub(super) fn has_mark(self, mark: u32) -> Self {
        self.load_meta(META_MARK, KEY)
            .equals(KEY, &mark.to_ne_bytes())
    }

    /// Only what is sent to an address of this host.
    pub(super) fn for_this_host(self) -> Self {
        let data = Attributes::default()
            .number(1, KEY)
            .number(2, FIB_ADDRTYPE)
            .number(3, FIB_DADDR);
        self.step("fib", &data).equals(KEY, &LOCAL.to_ne_bytes())
    }

    /// Only what would go out by the way it came in.
    pub(super) fn goes_back(self) -> Self {
        let data = Attributes::default()
            .number(1, KEY)
            .number(2, FIB_OIF)
            .number(3, FIB_DADDR | FIB_IIF | FIB_PRESENT);
        self.step("fib", &data).equals(KEY, &[1])
    }

    /// Only what is sent to this address.
    pub(super) fn for_address(self, family: u8, address: &[u8]) -> Self {
        let offset = if family == IPV4 { 16 } else { 24 };
        let length = u32::try_from(address.len()).unwrap_or(u32::MAX);
        let data = Attributes::default()
            .number(1, KEY)
            .number(2, 1)
            .number(3, offset)
            .number(4, length);
        self.step("payload", &data).equals(KEY, address)
    }

    /// Only the first packet of a flow.
    pub(super) fn first_packet(self) -> Self {
        self.state(STATE_NEW).compare(KEY, 1, &[0; 4])
    }

    /// Only what belongs to a flow, or begins one: nothing outside of every window, for example.
    pub(super) fn tracked(self) -> Self {
        self.state(STATE_INVALID).equals(KEY, &[0; 4])
    }

    fn state(self, bit: u32) -> Self {
        let data = Attributes::default().number(1, KEY).number(2, CT_STATE);
        self.step("ct", &data).masked(KEY, &bit.to_ne_bytes())
    }

    /// Only what is of no flow: any rule that asks has flows tracked.
    pub(super) fn has_no_state(self) -> Self {
        let data = Attributes::default().number(1, KEY).number(2, CT_STATE);
        self.step("ct", &data).equals(KEY, &0_u32.to_ne_bytes())
    }

    /// Only what comes back from the target, before the client has answered that.
    pub(super) fn first_answer(self) -> Self {
        let direction = Attributes::default().number(1, KEY).number(2, CT_DIRECTION);
        let status = Attributes::default().number(1, KEY).number(2, CT_STATUS);
        self.step("ct", &direction)
            .equals(KEY, &[REPLY])
            .step("ct", &status)
            .masked(KEY, &ASSURED.to_ne_bytes())
            .equals(KEY, &0_u32.to_ne_bytes())
    }

    /// Only resets, of TCP.
    pub(super) fn with_reset(self) -> Self {
        self.over_tcp().flags(RST).equals(KEY, &[RST])
    }

    /// Only what does not begin a connection of TCP.
    pub(super) fn goes_on(self) -> Self {
        let flags = self.over_tcp().flags(FIN | SYN | RST | ACK);
        flags.compare(KEY, 1, &[SYN])
    }

    fn flags(self, of: u8) -> Self {
        let data = Attributes::default()
            .number(1, KEY)
            .number(2, 2)
            .number(3, 13)
            .number(4, 1);
        self.step("payload", &data).masked(KEY, &[of])
    }

    /// Only errors about connections of TCP, of a family.
    pub(super) fn with_error(self, family: u8) -> Self {
        let [icmp, icmp6] = ERRORS;
        let error = if family == IPV4 { icmp } else { icmp6 };
        self.load_meta(META_L4PROTO, KEY)
            .equals(KEY, &[error])
            .flow_protocol()
            .equals(KEY, &[6])
    }

    /// Takes the protocol of the flow, also where the packet is an error about it.
    fn flow_protocol(self) -> Self {
        let data = Attributes::default()
            .number(1, KEY)
            .number(2, CT_PROTOCOL)
            .bytes(3, &[0]);
        self.step("ct", &data)
    }

    /// Only flows whose label has these bits, of those in the mask.
    pub(super) fn labelled(self, label: &[u8; LABEL_LENGTH], of: &[u8; LABEL_LENGTH]) -> Self {
        let data = Attributes::default().number(1, LABEL).number(2, CT_LABELS);
        self.step("ct", &data)
            .masked(LABEL, of)
            .equals(LABEL, label)
    }

    /// Adds these bits to the flow's label.
    pub(super) fn label(self, label: &[u8; LABEL_LENGTH]) -> Self {
        let value = Attributes::default().bytes(VALUE, label);
        let load = Attributes::default().number(1, LABEL).nest(2, &value);
        let set = Attributes::default().number(2, CT_LABELS).number(4, LABEL);
        self.step("immediate", &load).step("ct", &set)
    }

    /// Takes the protocol and port that the packet is sent to for the key.
    pub(super) fn port_key(self) -> Self {
        let data = Attributes::default()
            .number(1, KEY + 1)
            .number(2, 2)
            .number(3, 2)
            .number(4, 2);
        self.load_meta(META_L4PROTO, KEY).step("payload", &data)
    }

    /// Takes the protocol and port that the flow was first sent to for the key.
    pub(super) fn first_port_key(self) -> Self {
        let data = Attributes::default()
            .number(1, KEY + 1)
            .number(2, CT_PROTO_DST)
            .bytes(3, &[0]);
        self.flow_protocol().step("ct", &data)
    }

    /// Takes the address and port that the packet comes from for the key; of TCP.
    pub(super) fn source_key(self, family: u8) -> Self {
        let (offset, length) = if family == IPV4 { (12, 4) } else { (8, 16) };
        let address = Attributes::default()
            .number(1, KEY)
            .number(2, 1)
            .number(3, offset)
            .number(4, length);
        let port = Attributes::default()
            .number(1, KEY + length / 4)
            .number(2, 2)
            .number(3, 0)
            .number(4, 2);
        self.family(family)
            .over_tcp()
            .step("payload", &address)
            .step("payload", &port)
    }

    /// Only where the set has the key.
    pub(super) fn found_in(self, set: &str) -> Self {
        let data = Attributes::default().text(1, set).number(2, KEY);
        self.step("lookup", &data)
    }

    /// Has the key in the set for so long.
    pub(super) fn noted_in(self, set: &str, milliseconds: u64) -> Self {
        let data = Attributes::default()
            .text(1, set)
            .number(3, 1)
            .number(4, KEY)
            .bytes(6, &milliseconds.to_be_bytes());
        self.step("dynset", &data)
    }

    /// Only where the map has the key: takes what it leads to.
    pub(super) fn target_of(self, map: &str) -> Self {
        let data = Attributes::default()
            .text(1, map)
            .number(2, KEY)
            .number(3, TARGET);
        self.step("lookup", &data)
    }

    /// Sends the flow to the target.
    pub(super) fn redirect(self, family: u8) -> Self {
        let address = if family == IPV4 { 1 } else { 4 };
        let data = Attributes::default()
            .number(1, 1)
            .number(2, family.into())
            .number(3, TARGET)
            .number(5, TARGET + address);
        self.step("nat", &data)
    }

    /// Has the flow come from this host.
    pub(super) fn masquerade(self) -> Self {
        self.step("masq", &Attributes::default())
    }

    /// Answers with a reset.
    pub(super) fn reset(self) -> Self {
        let data = Attributes::default().number(1, 1).bytes(2, &[0]);
        self.step("reject", &data)
    }

    /// Has the packet belong to no flow.
    pub(super) fn untracked(self) -> Self {
        self.step("notrack", &Attributes::default())
    }

    pub(super) fn dropped(self) -> Self {
        self.verdict(&Attributes::default().number(1, DROP))
    }

    /// Leaves this chain.
    pub(super) fn leaves(self) -> Self {
        self.verdict(&Attributes::default().bytes(1, &RETURN.to_be_bytes()))
    }

    /// Goes on in another chain and does not come back.
    pub(super) fn goes_to(self, chain: &str) -> Self {
        let verdict = Attributes::default()
            .bytes(1, &GOTO.to_be_bytes())
            .text(2, chain);
        self.verdict(&verdict)
    }

    fn verdict(self, verdict: &Attributes) -> Self {
        let data = Attributes::default().nest(VERDICT, verdict);
        let data = Attributes::default().number(1, 0).nest(2, &data);
        self.step("immediate", &data)
    }
}

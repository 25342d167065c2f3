use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;

/// What the kernel does about sockets: a port is had once at an address, unless who has it lets
/// the other one in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Kernel {
    bound: BTreeSet<Spot>,
    /// What other programs have.
    foreign: BTreeSet<Spot>,
}

impl Kernel {
    fn open(&mut self, opening: &Opening) -> bool {
        let clash = |other: &Spot| {
            other.key == opening.spot.key && other.place.overlaps(opening.spot.place)
        };
        let may = |other: &Spot| !clash(other) || opening.beside.contains(other);
        !self.foreign.iter().any(clash)
            && self.bound.iter().all(may)
            && self.bound.insert(opening.spot)
    }
}

fn spot(port: u16, place: Place) -> Spot {
    let protocol = rehome_shared::ids::Protocol::Tcp;
    Spot {
        key: RouteKey::new(port, protocol),
        place,
    }
}

fn at(address: &str) -> Place {
    Place::Address(address.parse().unwrap())
}

/// Addresses of which no two overlap, as `listen:` has them, or none of them.
fn places() -> impl Strategy<Value = Vec<Place>> {
    let specific = prop::sample::subsequence(
        vec![
            at("10.0.0.1"),
            at("10.0.0.2"),
            at("127.0.0.1"),
            at("fd00::1"),
        ],
        1..=4,
    );
    prop_oneof![
        Just(vec![Place::Everywhere]),
        Just(vec![at("0.0.0.0"), at("::")]),
        Just(vec![at("0.0.0.0"), at("fd00::1")]),
        specific,
    ]
}

fn all(wanted: &BTreeMap<Spot, Need>) -> BTreeSet<Spot> {
    wanted.keys().copied().collect()
}

fn spots(ports: &BTreeSet<u16>, places: &[Place]) -> BTreeSet<Spot> {
    ports
        .iter()
        .flat_map(|port| places.iter().map(|place| spot(*port, *place)))
        .collect()
}

prop_compose! {
    /// A configuration: ports, where they listen, and which of them must be had.
    fn configuration()(
        ports in btree_set(1_u16..8, 0..6),
        places in places(),
        must in btree_set(1_u16..8, 0..6),
    ) -> BTreeMap<Spot, Need> {
        spots(&ports, &places)
            .into_iter()
            .map(|spot| {
                let need = if must.contains(&spot.key.external()) { Need::Must } else { Need::May };
                (spot, need)
            })
            .collect()
    }
}

/// Carries a plan out as the driver does. True when it took effect.
fn carry_out(kernel: &mut Kernel, plan: &Plan) -> bool {
    let before = kernel.bound.clone();
    let (mut missing, mut refused) = (BTreeSet::new(), false);
    for opening in &plan.open {
        if !kernel.open(opening) {
            missing.insert(opening.spot.key);
            refused |= opening.need == Need::Must;
        }
    }
    if refused {
        kernel.bound = before;
        return false;
    }
    for spot in plan.to_close(&missing) {
        assert!(kernel.bound.remove(&spot), "{spot:?} was not open");
    }
    true
}

proptest! {
    #[test]
    fn every_configuration_leads_to_every_other(
        configurations in prop::collection::vec(configuration(), 1..8),
    ) {
        let mut kernel = Kernel::default();
        for wanted in configurations {
            let plan = plan(&kernel.bound, &wanted);
            prop_assert!(carry_out(&mut kernel, &plan));
            prop_assert_eq!(&kernel.bound, &all(&wanted));
            let again = super::plan(&kernel.bound, &wanted);
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn what_cannot_be_had_changes_nothing_or_its_own_port_alone(
        (before, wanted, foreign) in (configuration(), configuration(), configuration()),
    ) {
        let mut kernel = Kernel {
            bound: all(&before),
            foreign: all(&foreign),
        };
        let was = kernel.bound.clone();
        let plan = plan(&kernel.bound, &wanted);
        let applied = carry_out(&mut kernel, &plan);
        if !applied {
            prop_assert_eq!(&kernel.bound, &was);
        }
        for spot in was.iter().filter(|spot| wanted.contains_key(spot)) {
            prop_assert!(plan.keep.contains(spot) && kernel.bound.contains(spot));
        }
        // A port that was open and is wanted has a socket, whoever else is in the way.
        for key in was.iter().map(|spot| spot.key) {
            if !applied || wanted.keys().any(|spot| spot.key == key) {
                prop_assert!(kernel.bound.iter().any(|spot| spot.key == key));
            }
        }
        // Once nobody is in the way any more, the next look mends it.
        kernel.foreign.clear();
        if applied {
            let plan = super::plan(&kernel.bound, &wanted);
            prop_assert!(carry_out(&mut kernel, &plan));
            prop_assert_eq!(&kernel.bound, &all(&wanted));
        }
    }
}

#[test]
fn another_address_of_a_port_is_opened_beside_the_old_one() {
    let wanted = |place| BTreeMap::from([(spot(80, place), Need::Must)]);
    let open = BTreeSet::from([spot(80, Place::Everywhere), spot(81, Place::Everywhere)]);
    let plan = plan(&open, &wanted(at("10.0.0.1")));
    assert_eq!(
        plan.open[0].beside,
        [spot(80, Place::Everywhere)],
        "they overlap"
    );
    assert_eq!(plan.close, open);
    let open = BTreeSet::from([spot(80, at("10.0.0.2"))]);
    let plan = super::plan(&open, &wanted(at("10.0.0.1")));
    assert!(plan.open[0].beside.is_empty(), "they do not");
}

#[test]
fn all_addresses_of_a_family_are_those_of_the_family() {
    assert!(at("0.0.0.0").overlaps(at("10.0.0.1")));
    assert!(!at("0.0.0.0").overlaps(at("fd00::1")));
    assert!(!at("0.0.0.0").overlaps(at("::")));
    assert!(Place::Everywhere.overlaps(at("::")));
    assert!(!at("10.0.0.2").overlaps(at("10.0.0.1")));
}

//! The highest rate of datagrams of which none is lost.

use crate::bench::measure::Load;
use crate::run::Done;

/// Bytes of a datagram's contents: with its headers it is a packet of 1,280 bytes, the MTU of the mesh.
const DATAGRAM: u32 = 1252;
/// Gbit/s between which the rate is looked for.
const BOUNDS: (f64, f64) = (0.05, 8.0);
/// Halvings of the bounds' ratio: each step is 2 % at the end.
const STEPS: usize = 8;
/// How often a rate is tried before something is held to be lost because of it.
const ATTEMPTS: usize = 2;
const SECONDS: u32 = 2;

/// What arrives, in Gbit/s, if nothing is lost of what is sent at this rate. A sender that does not make the rate is taken at its own.
fn arrives_whole(load: &Load<'_>, rate: f64) -> Option<f64> {
    (0..ATTEMPTS).find_map(|_| {
        let report = load.iperf_once(&format!("-u -b {:.0}M -l {DATAGRAM}", rate * 1000.0)).ok()?;
        let sum = report.pointer("/end/sum")?;
        let lost = sum.get("lost_packets")?.as_f64()?;
        let sent = sum.get("bits_per_second")?.as_f64()?;
        (lost <= 0.0 && sent > 0.0).then_some(sent / 1e9)
    })
}

/// The highest such rate in Gbit/s, to 2 %; 0 if even the lowest loses some.
pub fn loss_free(load: &Load<'_>) -> Done<f64> {
    let load = Load { seconds: SECONDS, ..*load };
    let (mut low, mut high) = BOUNDS;
    let mut best = 0.0_f64;
    for _ in 0..STEPS {
        let rate = (low * high).sqrt();
        match arrives_whole(&load, rate) {
            Some(arrived) => {
                best = best.max(arrived);
                // The sender is at its own limit.
                if arrived < 0.9 * rate {
                    break;
                }
                low = rate;
            }
            None => high = rate,
        }
    }
    Ok(best)
}

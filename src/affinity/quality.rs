//! Service quality: what the model learns to predict.

use crate::usage::Usage;

/// Quality of one interval in [0, 1]: one minus the measured stall. PSI `some` of CPU, memory
/// and I/O and the guest's steal are taken as independent causes. Time throttled by the
/// feature's own `cpu.max` shows up as CPU pressure too; it is the administrator's will, not the
/// host's fault, and is taken out. `None` when nothing was measured.
pub fn quality(usage: &Usage, steal_percent: Option<f64>) -> Option<f64> {
    let cpu = usage
        .psi_cpu_percent
        .map(|p| p - usage.throttled_percent.unwrap_or(0.0));
    let stalls = [
        cpu,
        usage.psi_memory_percent,
        usage.psi_io_percent,
        steal_percent,
    ];
    let mut known = false;
    let mut q = 1.0;
    for s in stalls.into_iter().flatten().filter(|s| s.is_finite()) {
        known = true;
        q *= 1.0 - (s / 100.0).clamp(0.0, 1.0);
    }
    known.then_some(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stall_without_throttling() {
        let mut u = Usage::default();
        assert_eq!(quality(&u, None), None, "unmeasured is not perfect");
        u.psi_cpu_percent = Some(30.0);
        assert!((quality(&u, None).unwrap() - 0.7).abs() < 1e-12);
        u.throttled_percent = Some(25.0);
        assert!((quality(&u, None).unwrap() - 0.95).abs() < 1e-12);
        u.throttled_percent = Some(60.0);
        assert_eq!(quality(&u, None), Some(1.0));
        u.psi_io_percent = Some(50.0);
        assert!((quality(&u, Some(50.0)).unwrap() - 0.25).abs() < 1e-12);
    }
}

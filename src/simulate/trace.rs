//! Traces: what features wanted, step by step. Text in, numbers out.
//!
//! | Format | First line | Where it comes from |
//! |---|---|---|
//! | wide | `vm,t0,t1,...` | PlanetLab (CoMon project): one row a VM, percent of its share |
//! | long | `vm,step,cpu_percent,memory_percent` | Google 2011 cluster trace, aggregated per VM |
//! | machine | `cpu_util_percent,mem_util_percent,...` | Alibaba 2018, one series a file, 10 s |
//! | history | `time,at_ms,interval_s,cpu,...` | `drover history ... --format csv`, one feature a file |

use std::collections::BTreeMap;

/// Why a trace was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// No format of ours.
    #[error(
        "{name}: not a trace: the first line is '{head}'; known are 'vm,t0,t1,...' (PlanetLab), \
         'vm,step,cpu_percent,memory_percent' (Google), 'cpu_util_percent,...' (Alibaba) and what \
         'drover history ... --format csv' prints"
    )]
    Unknown {
        /// File.
        name: String,
        /// Its first line, shortened.
        head: String,
    },
    /// A cell that cannot be read.
    #[error("{name}:{line}: '{cell}' is not a number of at least 0; leave unknown values empty")]
    Cell {
        /// File.
        name: String,
        /// Line, from 1.
        line: usize,
        /// What is there, shortened.
        cell: String,
    },
    /// Nothing usable in it.
    #[error("{0}: no values in it")]
    Empty(String),
    /// More than can be held.
    #[error(
        "{name}:{line}: more than {MOST_VALUES} values; simulate fewer or shorter traces at once"
    )]
    Large {
        /// File.
        name: String,
        /// Line, from 1.
        line: usize,
    },
    /// Too short to be simulated.
    #[error(
        "the traces have {steps} steps of {step_s} s in common, more than {needed} are needed (the \
         first {needed} are only looked at)"
    )]
    Short {
        /// Steps.
        steps: usize,
        /// Length of a step, seconds.
        step_s: i64,
        /// Needed.
        needed: usize,
    },
}

/// How the numbers of a trace are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// CPUs that 100 % of a feature's share are; a history says it itself.
    pub cpus: f64,
    /// MiB that 100 % of its memory are; a history says it itself.
    pub memory_mib: f64,
    /// Length of a simulated step, seconds; a trace with shorter steps is averaged.
    pub step_s: i64,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            memory_mib: 4096.0,
            step_s: 300,
        }
    }
}

/// One feature's wishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// As in the trace.
    pub name: String,
    /// CPUs wanted in each step.
    pub cpus: Vec<f64>,
    /// MiB, the mean; `None` when the trace does not tell.
    pub memory_mib: Option<f64>,
}

/// Features with equally many steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Length of a step, seconds.
    pub step_s: i64,
    /// The features.
    pub features: Vec<Feature>,
}

/// Raw series of one feature: step length, CPUs and MiB per step.
struct Raw {
    name: String,
    step_s: i64,
    cpus: Vec<Option<f64>>,
    memory: Vec<Option<f64>>,
}

/// Most values that are taken, of all files together.
pub const MOST_VALUES: usize = 40_000_000;

/// A file while it is read.
struct Reader<'a> {
    name: &'a str,
    scale: &'a Scale,
    /// Values of all files so far.
    values: &'a mut usize,
}

/// Lines with their numbers, without the heading and empty ones.
type Lines<'a> = &'a mut dyn Iterator<Item = (usize, &'a str)>;

impl Reader<'_> {
    /// A value in percent times a factor; an empty cell is unknown.
    fn cell(
        &mut self,
        line: usize,
        cell: Option<&str>,
        by: f64,
    ) -> Result<Option<f64>, TraceError> {
        let cell = cell.unwrap_or_default().trim();
        *self.values += 1;
        if *self.values > MOST_VALUES {
            return Err(TraceError::Large {
                name: self.name.to_owned(),
                line,
            });
        }
        if cell.is_empty() {
            return Ok(None);
        }
        let v: Option<f64> = cell.parse().ok();
        match v.filter(|v| v.is_finite() && *v >= 0.0) {
            Some(v) => Ok(Some(v * by)),
            None => Err(self.wrong(line, cell)),
        }
    }

    fn wrong(&self, line: usize, cell: &str) -> TraceError {
        TraceError::Cell {
            name: self.name.to_owned(),
            line,
            cell: cell.chars().take(40).collect(),
        }
    }

    fn wide(&mut self, lines: Lines<'_>) -> Result<Vec<Raw>, TraceError> {
        let mut all = Vec::new();
        for (n, l) in lines {
            let mut cells = l.split(',');
            let mut raw = Raw::new(cells.next().unwrap_or_default(), 300);
            for c in cells {
                raw.cpus
                    .push(self.cell(n, Some(c), self.scale.cpus / 100.0)?);
            }
            all.push(raw);
        }
        Ok(all)
    }

    fn long(&mut self, lines: Lines<'_>) -> Result<Vec<Raw>, TraceError> {
        let mut of: BTreeMap<&str, Raw> = BTreeMap::new();
        for (n, l) in lines {
            let mut cells = l.split(',');
            let name = cells.next().unwrap_or_default();
            let step = cells.next().unwrap_or_default();
            let at: usize = step.trim().parse().map_err(|_| self.wrong(n, step))?;
            if at >= MOST_STEPS {
                return Err(self.wrong(n, step));
            }
            let raw = of.entry(name).or_insert_with(|| Raw::new(name, 300));
            let cpus = self.cell(n, cells.next(), self.scale.cpus / 100.0)?;
            let memory = self.cell(n, cells.next(), self.scale.memory_mib / 100.0)?;
            if raw.cpus.len() <= at {
                *self.values += at - raw.cpus.len();
                raw.cpus.resize(at + 1, None);
            }
            raw.cpus[at] = cpus;
            raw.memory.push(memory);
        }
        Ok(of.into_values().collect())
    }

    fn machine(&mut self, lines: Lines<'_>) -> Result<Raw, TraceError> {
        let mut raw = Raw::new(self.name, 10);
        for (n, l) in lines {
            let mut cells = l.split(',');
            raw.cpus
                .push(self.cell(n, cells.next(), self.scale.cpus / 100.0)?);
            let memory = self.cell(n, cells.next(), self.scale.memory_mib / 100.0)?;
            raw.memory.push(memory);
        }
        Ok(raw)
    }

    /// Points at their own times become steps; what was not measured is missing.
    fn history(&mut self, head: &str, lines: Lines<'_>) -> Result<Raw, TraceError> {
        let at = |n: &str| head.split(',').position(|h| h.trim() == n);
        let (time, cpu, memory) = (at("at_ms"), at("cpu"), at("memory"));
        let step_ms = self.scale.step_s * 1000;
        let mut sums: BTreeMap<i64, [(f64, u32); 2]> = BTreeMap::new();
        for (n, l) in lines {
            let cells: Vec<&str> = l.split(',').collect();
            let cell = |i: Option<usize>| i.and_then(|i| cells.get(i).copied());
            let at = cell(time).unwrap_or_default();
            let at: i64 = at.trim().parse().map_err(|_| self.wrong(n, at))?;
            let values = [
                self.cell(n, cell(cpu), 0.01)?,
                self.cell(n, cell(memory), 1.0)?,
            ];
            let step = sums.entry(at.saturating_sub(1).div_euclid(step_ms));
            for (sum, v) in step.or_default().iter_mut().zip(values) {
                if let Some(v) = v {
                    *sum = (sum.0 + v, sum.1 + 1);
                }
            }
        }
        let mut raw = Raw::new(self.name, self.scale.step_s);
        let (Some(first), Some(last)) = (
            sums.keys().next().copied(),
            sums.keys().next_back().copied(),
        ) else {
            return Ok(raw);
        };
        // A clock that jumped must not make a series of billions of steps.
        let last = last.min(first.saturating_add(MOST_STEPS.cast_signed() as i64));
        for i in first..=last {
            let mean = |which: usize| {
                let (sum, n) = sums.get(&i)?[which];
                (n > 0).then(|| sum / f64::from(n))
            };
            raw.cpus.push(mean(0));
            raw.memory.push(mean(1));
        }
        Ok(raw)
    }
}

impl Raw {
    fn new(name: &str, step_s: i64) -> Self {
        Self {
            name: name.to_owned(),
            step_s,
            cpus: Vec::new(),
            memory: Vec::new(),
        }
    }
}

/// Most steps of one feature.
const MOST_STEPS: usize = 100_000;

/// A series of the wanted step, unknown steps taking the last known value.
fn regular(raw: &Raw, step_s: i64) -> Vec<f64> {
    let many = usize::try_from(step_s / raw.step_s).unwrap_or(1).max(1);
    let mut last = raw.cpus.iter().flatten().next().copied().unwrap_or(0.0);
    raw.cpus
        .chunks(many)
        .filter(|c| c.len() == many || many == 1)
        .map(|c| {
            let known: Vec<f64> = c.iter().flatten().copied().collect();
            if !known.is_empty() {
                last = known.iter().sum::<f64>() / known.len() as f64;
            }
            last
        })
        .collect()
}

impl Trace {
    /// Reads files, each a name and its text. Features of several files run beside each other,
    /// from their first step for as long as the shortest of them.
    pub fn parse<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
        scale: &Scale,
    ) -> Result<Self, TraceError> {
        let (mut raws, mut values) = (Vec::new(), 0);
        for (name, text) in files {
            let mut lines = (1..)
                .zip(text.lines())
                .filter(|(_, l)| !l.trim().is_empty());
            let (_, head) = lines.next().unwrap_or_default();
            let before = raws.len();
            let columns: Vec<&str> = head.split(',').map(str::trim).collect();
            let mut reader = Reader {
                name,
                scale,
                values: &mut values,
            };
            match columns.as_slice() {
                ["vm", "step", "cpu_percent", ..] => raws.extend(reader.long(&mut lines)?),
                ["vm", "t0", ..] => raws.extend(reader.wide(&mut lines)?),
                ["cpu_util_percent", ..] => raws.push(reader.machine(&mut lines)?),
                ["time", "at_ms", ..] => raws.push(reader.history(head, &mut lines)?),
                _ => {
                    return Err(TraceError::Unknown {
                        name: name.to_owned(),
                        head: head.chars().take(60).collect(),
                    });
                }
            }
            let known = |r: &Raw| r.cpus.iter().any(Option::is_some);
            if !raws[before..].iter().any(known) {
                return Err(TraceError::Empty(name.to_owned()));
            }
        }
        // A simulated step is as long as asked, or as the longest of the traces' own.
        let step_s = raws
            .iter()
            .map(|r| r.step_s)
            .max()
            .unwrap_or(0)
            .max(scale.step_s);
        let mut features: Vec<Feature> = raws
            .iter()
            .map(|r| {
                let known: Vec<f64> = r.memory.iter().flatten().copied().collect();
                Feature {
                    name: r.name.clone(),
                    cpus: regular(r, step_s),
                    memory_mib: (!known.is_empty())
                        .then(|| known.iter().sum::<f64>() / known.len() as f64),
                }
            })
            .collect();
        let steps = features.iter().map(|f| f.cpus.len()).min().unwrap_or(0);
        for f in &mut features {
            f.cpus.truncate(steps);
        }
        Ok(Self { step_s, features })
    }

    /// Steps.
    pub fn steps(&self) -> usize {
        self.features.first().map_or(0, |f| f.cpus.len())
    }

    /// CPUs that all features want together, averaged over time.
    pub fn mean_cpus(&self) -> f64 {
        let steps = self.steps().max(1) as f64;
        self.features.iter().flat_map(|f| &f.cpus).sum::<f64>() / steps
    }

    /// CPUs that all features want together in the busiest step.
    pub fn peak_cpus(&self) -> f64 {
        let at = |step: usize| self.features.iter().map(|f| f.cpus[step]).sum();
        (0..self.steps()).map(at).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn parse(text: &str, step_s: i64) -> Result<Trace, TraceError> {
        let scale = Scale {
            step_s,
            ..Scale::default()
        };
        Trace::parse([("x.csv", text)], &scale)
    }

    #[test]
    fn formats() {
        let t = parse("vm,t0,t1,t2\na,10,20,30\nb,50,,100\n", 300).unwrap();
        assert_eq!(t.features[0].cpus, [0.1, 0.2, 0.3]);
        assert_eq!(
            t.features[1].cpus,
            [0.5, 0.5, 1.0],
            "a gap keeps the last value"
        );
        assert_eq!(t.features[1].memory_mib, None);
        let t = parse(
            "vm,step,cpu_percent,memory_percent\na,0,10,50\nb,0,1,1\na,1,30,50\nb,1,1,1\n",
            300,
        );
        let t = t.unwrap();
        assert_eq!((t.steps(), t.features.len()), (2, 2));
        assert_eq!(t.features[0].memory_mib, Some(2048.0));
        let mut text = String::from("cpu_util_percent,mem_util_percent,net_in\n");
        for i in 0..65 {
            writeln!(text, "{},50,1", i / 30).unwrap();
        }
        let t = parse(&text, 300).unwrap();
        let cpus = &t.features[0].cpus;
        assert_eq!(cpus.len(), 2, "the last half step is left out");
        assert!(cpus[0] == 0.0 && (cpus[1] - 0.01).abs() < 1e-12, "{cpus:?}");
    }

    #[test]
    fn a_history_has_its_own_times() {
        let text = "time,at_ms,interval_s,cpu,memory\nx,60000,5,100,64\nx,61000,5,50,64\n\
                    x,120000,5,,\nx,180000,5,200,66\n";
        let t = parse(text, 60).unwrap();
        assert_eq!(t.features[0].cpus, [1.0, 0.5, 2.0]);
        assert_eq!(t.features[0].name, "x.csv");
        let memory = t.features[0].memory_mib.unwrap();
        assert!(
            (memory - (64.0 + 64.0 + 66.0) / 3.0).abs() < 1e-9,
            "{memory}"
        );
    }

    #[test]
    fn refused() {
        let e = parse("a,b\n1,2\n", 300).unwrap_err().to_string();
        assert!(e.contains("x.csv: not a trace") && e.contains("a,b"), "{e}");
        for (text, place) in [
            ("vm,t0,t1\na,1,2\nb,1,many\n", "x.csv:3: 'many'"),
            ("vm,t0,t1\n\na,1,-2\n", "x.csv:3: '-2'"),
            ("vm,step,cpu_percent\na,one,3\n", "x.csv:2: 'one'"),
            ("vm,step,cpu_percent\na,99999999,3\n", "x.csv:2: '99999999'"),
            ("cpu_util_percent\n5\nNaN\n", "x.csv:3: 'NaN'"),
            ("time,at_ms,cpu\nx,soon,3\n", "x.csv:2: 'soon'"),
        ] {
            let e = parse(text, 300).unwrap_err().to_string();
            assert!(e.contains(place), "{e}");
        }
        assert!(matches!(parse("vm,t0\n", 300), Err(TraceError::Empty(_))));
        assert!(matches!(parse("", 300), Err(TraceError::Unknown { .. })));
    }
}

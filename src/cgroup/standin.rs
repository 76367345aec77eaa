//! A stand-in for systemd's manager, at its own socket: it has the CPUs of units, and keeps them in
//! drop-in files as systemd does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cpulist::CpuSet;
use crate::dbus::{Message, returned_value as returned};
use crate::host::Host;

/// What it has.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// The CPUs of each unit.
    pub(crate) cpus: BTreeMap<String, CpuSet>,
    /// The limits of CPU time of units, in microseconds a second.
    pub(crate) limits: BTreeMap<String, u64>,
    /// What was set, in order.
    pub(crate) set: Vec<(String, String)>,
    /// After so many changes it hangs up on everybody who asks for another.
    pub(crate) most_changes: Option<usize>,
    /// How many have connected.
    pub(crate) connections: usize,
}

/// A systemd without properties but CPUs and limits of CPU time.
pub(crate) struct Standin {
    units: Arc<Mutex<Units>>,
}

impl Standin {
    /// A systemd that has these units, with these CPUs, on this machine.
    pub(crate) fn on(host: &Host, units: &[(&str, &str)]) -> Standin {
        let socket = host.systemd_socket();
        for directory in [socket.parent().unwrap(), &host.systemd_mark()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let listener = UnixListener::bind(&socket).unwrap();
        let cpus = units.iter();
        let cpus = cpus.map(|(unit, cpus)| ((*unit).to_owned(), cpus.parse().unwrap()));
        let units = Arc::new(Mutex::new(Units {
            cpus: cpus.collect(),
            ..Units::default()
        }));
        let (shared, host) = (Arc::clone(&units), host.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                shared.lock().unwrap().connections += 1;
                // A client that has got enough hangs up.
                let _ = serve(&mut stream.unwrap(), &shared, &host);
            }
        });
        Standin { units }
    }

    /// What it has now.
    pub(crate) fn units(&self) -> MutexGuard<'_, Units> {
        self.units.lock().unwrap()
    }

    /// The CPUs of a unit.
    pub(crate) fn cpus(&self, unit: &str) -> String {
        self.units().cpus[unit].to_string()
    }
}

fn serve(stream: &mut UnixStream, units: &Mutex<Units>, host: &Host) -> anyhow::Result<()> {
    stream.write_all(b"OK 0123456789abcdef\r\n")?;
    let mut unread = Vec::new();
    let mut is_greeted = false;
    loop {
        if !is_greeted {
            let begins = unread.windows(7).position(|seven| seven == b"BEGIN\r\n");
            if let Some(place) = begins {
                unread.drain(..place + 7);
                is_greeted = true;
                continue;
            }
        } else if let Some(length) = Message::length(&unread, 1 << 16)?
            && length <= unread.len()
        {
            let call: Vec<u8> = unread.drain(..length).collect();
            stream.write_all(&answer(&call, &mut units.lock().unwrap(), host)?)?;
            continue;
        }
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        unread.extend_from_slice(&bytes[..read]);
    }
}

fn place_of(bytes: &[u8], text: &str) -> Option<usize> {
    let wanted = [text.as_bytes(), b"\0"].concat();
    bytes.windows(wanted.len()).position(|some| some == wanted)
}

fn answer(call: &[u8], units: &mut Units, host: &Host) -> anyhow::Result<Vec<u8>> {
    let serial = u32_at(call, 8)?;
    let has = |text: &str| place_of(call, text).is_some();
    // `_2e` stands for the dot in an object's path.
    let is_it = |unit: &str| {
        has(unit)
            || has(&format!(
                "/org/freedesktop/systemd1/unit/{}",
                unit.replace('.', "_2e")
            ))
    };
    let unit = units.cpus.keys().find(|unit| is_it(unit)).cloned();
    let unit = unit.ok_or_else(|| anyhow::anyhow!("no such unit"))?;
    if has("SetUnitProperties") {
        let most = units.most_changes.unwrap_or(usize::MAX);
        anyhow::ensure!(units.set.len() < most, "it is dead by now");
        let name = "CPUQuotaPerSecUSec";
        if let Some(place) = place_of(call, name) {
            let value = place + name.len() + 1 + b"\x01t\0".len();
            let value = value.next_multiple_of(8);
            let limit = u64::from_ne_bytes(call[value..value + 8].try_into()?);
            units.set.push((unit.clone(), limit.to_string()));
            units.limits.insert(unit, limit);
            return Ok(returned(serial, "o", &text_of("/job")));
        }
        let name = "AllowedCPUs";
        let value = place_of(call, name).unwrap() + name.len() + 1 + b"\x02ay\0".len();
        let value = value.next_multiple_of(4);
        let length = u32_at(call, value)? as usize;
        let cpus = CpuSet::from_byte_mask(&call[value + 4..value + 4 + length]).unwrap();
        let settings = host.systemd_runtime_settings(&unit);
        std::fs::create_dir_all(&settings)?;
        let drop_in = settings.join("50-AllowedCPUs.conf");
        crate::files::replace(&drop_in, b"", 0o644, crate::files::Durability::Crash)?;
        units.set.push((unit.clone(), cpus.to_string()));
        units.cpus.insert(unit, cpus);
        return Ok(returned(serial, "o", &text_of("/job")));
    }
    let cpus = &units.cpus[&unit];
    // A variant has its type before its value, which is aligned to four bytes.
    let value = if has("AllowedCPUs") {
        let mask = cpus.to_byte_mask();
        let length = u32::try_from(mask.len())?.to_ne_bytes();
        [&b"\x02ay\0"[..], &length, &mask].concat()
    } else if has("CPUQuotaPerSecUSec") {
        let limit = units.limits.get(&unit).copied().unwrap_or(u64::MAX);
        [&b"\x01t\0\0\0\0\0\0"[..], &limit.to_ne_bytes()].concat()
    } else if has("Delegate") {
        b"\x01b\0\0\0\0\0\0".to_vec()
    } else {
        let slice = if unit.ends_with(".scope") && unit != "init.scope" {
            "/machine.slice"
        } else {
            ""
        };
        let group = text_of(&format!("{slice}/{unit}"));
        [b"\x01s\0\0".to_vec(), group].concat()
    };
    Ok(returned(serial, "v", &value))
}

fn text_of(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_ne_bytes();
    [&length[..], text.as_bytes(), b"\0"].concat()
}

fn u32_at(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let four = bytes
        .get(at..at + 4)
        .ok_or_else(|| anyhow::anyhow!("it is torn"))?;
    Ok(u32::from_ne_bytes(four.try_into()?))
}

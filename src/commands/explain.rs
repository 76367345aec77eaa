//! `pinfold explain`: what a request would get now, and why.

use std::io::Write;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tabwriter::TabWriter;

use super::output::Output;
use super::{request, warn_of_neighbours};
use crate::check;
use crate::cli::ExplainArgs;
use crate::placement::{Explanation, Taken, explain, survey};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::settings::Settings;
use crate::text::one_line;

pub(super) fn run(args: &ExplainArgs, settings: &Settings) -> Result<u8> {
    let request = request(&args.wanted)?;
    let explanation = explain(settings.site(), &request)
        .with_context(|| format!("explain a request to pool {}", request.pool))?;
    for remark in &explanation.remarks {
        log::warn!("{remark}");
    }
    let mut kept = check::kept(&survey(settings.site())?);
    kept.retain(|list| list.pool == request.pool);
    warn_of_neighbours(settings.site(), &kept);
    let mut out = Output::product();
    if args.json {
        out.json(&document(&request, &explanation))?;
        return Ok(explanation.taken.is_err().into());
    }
    match &explanation.taken {
        Ok(taken) => write_table(&mut out, &request, taken, &explanation)?,
        Err(_) => writeln!(out, "{} of pool {}: refused", request.size, request.pool)?,
    }
    for reason in &explanation.why {
        writeln!(out, "- {}", one_line(reason))?;
    }
    match &explanation.taken {
        Ok(_) => Ok(0),
        Err(refusal) => {
            let what = format!(
                "it would be refused by pool {}: {}",
                request.pool, refusal.what
            );
            bail!(Refusal::new(what, refusal.remedy.clone()))
        }
    }
}

fn write_table(
    out: &mut impl Write,
    request: &Request,
    taken: &[Taken],
    explanation: &Explanation,
) -> Result<()> {
    writeln!(out, "{} of pool {}:", request.size, request.pool)?;
    let mut table = TabWriter::new(vec![]);
    writeln!(table, "CPUS\tNODE\tPACKAGE\tCACHE OF")?;
    for list in taken {
        writeln!(
            table,
            "{}\t{}\t{}\t{}",
            one_line(&list.list),
            list.nodes,
            list.packages,
            list.cache
        )?;
    }
    out.write_all(&table.into_inner()?)?;
    if !explanation.mems.is_empty() {
        writeln!(out, "memory from NUMA node {}", explanation.mems)?;
    }
    Ok(())
}

/// What a request would get now.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// The pool that is asked.
    pool: &'a str,
    /// The CPU lists that it would get; none where it would be refused.
    cpu_lists: Vec<ListEntry<'a>>,
    /// The numbers of the NUMA nodes that its memory would be confined to; none where its memory
    /// would be left alone.
    memory_nodes: Vec<u32>,
    /// Why it would be refused, with the remedy; null where it would not. The exit code is 1 where
    /// it would.
    refused: Option<String>,
    /// What led to it, a sentence each.
    why: &'a [String],
}

/// A CPU list, and where it is.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct ListEntry<'a> {
    /// The CPUs, as a list such as `4,12` or `0-2`.
    cpus: &'a str,
    /// The numbers of its NUMA nodes.
    nodes: Vec<u32>,
    /// The numbers of its packages.
    packages: Vec<u32>,
    /// The CPUs of the pool that share its last-level caches, as a list.
    cache_cpus: String,
}

fn document<'a>(request: &'a Request, explanation: &'a Explanation) -> Document<'a> {
    let list = |taken: &'a Taken| ListEntry {
        cpus: &taken.list,
        nodes: taken.nodes.iter().collect(),
        packages: taken.packages.iter().collect(),
        cache_cpus: taken.cache.to_string(),
    };
    let taken = explanation.taken.as_deref();
    Document {
        pool: &request.pool,
        cpu_lists: taken.unwrap_or_default().iter().map(list).collect(),
        memory_nodes: explanation.mems.iter().collect(),
        refused: taken.err().map(Refusal::to_string),
        why: &explanation.why,
    }
}

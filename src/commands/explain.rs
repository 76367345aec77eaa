//! `pinfold explain`: what a request would get now, and why.

use std::io::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
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

fn document(request: &Request, explanation: &Explanation) -> Value {
    let list = |taken: &Taken| {
        json!({
            "cpus": taken.list,
            "nodes": taken.nodes.iter().collect::<Vec<_>>(),
            "packages": taken.packages.iter().collect::<Vec<_>>(),
            "cacheCpus": taken.cache.to_string(),
        })
    };
    let (lists, refusal) = match &explanation.taken {
        Ok(taken) => (taken.iter().map(list).collect::<Vec<_>>(), Value::Null),
        Err(refusal) => (Vec::new(), json!(refusal.to_string())),
    };
    json!({
        "pool": request.pool,
        "cpuLists": lists,
        "memoryNodes": explanation.mems.iter().collect::<Vec<_>>(),
        "refused": refusal,
        "why": explanation.why,
    })
}

//! `kind: RolloutStrategy`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::assignment::selector;
use super::reader::{Errors, Fields};
use crate::rollout::strategy::{
    APPLY_DEADLINE, Criteria, DAY, DAYS, MAX_STAGES, OnFailure, Promotion, Share, Size, Stage, Strategy,
    Window, parse_duration,
};
use crate::selector::AgentSelector;
use crate::yaml::{Node, brief, did_you_mean};

/// Most windows and channels of a strategy.
const MAX_LIST: usize = 50;
/// Label or attribute by which stages of a region find their agents.
const REGION: &str = "region";

/// Reads the spec of a strategy.
pub(super) fn read(node: &Node, errors: &mut Errors) -> Option<Strategy> {
    let known = [
        "stages",
        "failure_policy",
        "target_selector",
        "max_in_flight",
        "apply_deadline",
        "promotion",
        "windows",
    ];
    let fields = errors.fields(node, "spec", &known)?;
    let promotion = promotion(&fields, errors).unwrap_or_default();
    let mut stages = Vec::new();
    if let Some(list) = fields.required("stages", errors) {
        for (n, item) in errors.list(list, "spec.stages").iter().enumerate() {
            stage(item, &format!("spec.stages[{n}]"), promotion, &mut stages, errors);
            if stages.len() > MAX_STAGES {
                errors.push(
                    item.span,
                    "spec.stages",
                    format!("has more than {MAX_STAGES} stages: remove some"),
                );
                return None;
            }
        }
        check_stages(&stages, list, errors);
    }
    let (on_failure, notify) = match fields.get("failure_policy") {
        Some(node) => failure_policy(node, errors),
        None => Default::default(),
    };
    let target = fields.get("target_selector").and_then(|node| {
        let path = "spec.target_selector";
        selector(node, path, &["labels", "matchExpressions", "agent_ids"], errors)
    });
    let max_in_flight = fields.get("max_in_flight").and_then(|node| {
        let number = node.as_i64().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        if number.is_none() {
            errors.push(node.span, "spec.max_in_flight", "must be a whole number, 1 or more");
        }
        number
    });
    let apply_deadline = positive(&fields, "apply_deadline", errors).unwrap_or(APPLY_DEADLINE);
    let mut windows = Vec::new();
    if let Some(list) = fields.get("windows") {
        for (n, item) in errors.list(list, "spec.windows").iter().take(MAX_LIST).enumerate() {
            windows.extend(window(item, &format!("spec.windows[{n}]"), errors));
        }
    }
    let stages = stages.into_iter().map(|(stage, _)| stage).collect();
    Some(Strategy { stages, on_failure, notify, target, max_in_flight, apply_deadline, windows })
}

/// A stage and where its size stands.
type Placed<'a> = (Stage, &'a Node);

fn stage<'a>(
    node: &'a Node,
    path: &str,
    usual: Promotion,
    stages: &mut Vec<Placed<'a>>,
    errors: &mut Errors,
) {
    let known = [
        "name",
        "percentage",
        "count",
        "selector",
        "region",
        "growth",
        "duration",
        "success_criteria",
        "promotion",
        "deadline",
    ];
    let Some(fields) = errors.fields(node, path, &known) else { return };
    let name = fields.string("name", errors).map(|name| {
        if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
            errors.push(fields.place("name"), &fields.path("name"), "must have 1 to 63 characters");
        }
        name.to_owned()
    });
    let (place, size) = size(&fields, node, errors);
    let soak = match fields.get("duration") {
        Some(_) => duration(&fields, "duration", errors).unwrap_or_default(),
        None => Duration::ZERO,
    };
    let criteria = match fields.get("success_criteria") {
        Some(node) => criteria(node, &fields.path("success_criteria"), errors),
        None => Criteria::default(),
    };
    if let Some(Size::Count(count)) = size
        && criteria.min_reports > count
    {
        let field = join(&fields.path("success_criteria"), "min_reports");
        let message =
            format!("asks for more reports than the {count} agents of the stage can give: lower it");
        errors.push(fields.place("success_criteria"), &field, message);
    }
    let promotion = promotion(&fields, errors).unwrap_or(usual);
    let deadline = positive(&fields, "deadline", errors);
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= soak) {
        let message = format!(
            "is over after {} s, before agents were watched for `duration`: make it longer",
            deadline.as_secs()
        );
        errors.push(fields.place("deadline"), &fields.path("deadline"), message);
    }
    let growth = growth(&fields, size.as_ref(), errors);
    let (Some(name), Some(size)) = (name, size) else { return };
    let stage = Stage { name, size, soak, criteria, promotion, deadline };
    match growth {
        Some((factor, to)) => {
            let Size::Share(mut share) = stage.size else { return };
            for n in 1.. {
                let name = format!("{}-{n}", stage.name);
                stages.push((Stage { name, size: Size::Share(share), ..stage.clone() }, place));
                if share >= to || stages.len() > MAX_STAGES {
                    return;
                }
                share = Share::of_fraction((share.fraction() * factor).min(to.fraction())).unwrap_or(to);
            }
        }
        None => stages.push((stage, place)),
    }
}

fn join(path: &str, field: &str) -> String {
    format!("{path}.{field}")
}

fn size<'a>(fields: &Fields<'a>, stage: &'a Node, errors: &mut Errors) -> (&'a Node, Option<Size>) {
    let given: Vec<_> = ["percentage", "count", "selector", "region"]
        .into_iter()
        .filter_map(|name| Some((name, fields.get(name)?)))
        .collect();
    let [(name, node)] = given.as_slice() else {
        let message = "must say which agents by one of percentage, count, selector and region";
        errors.push(stage.span, &fields.path("percentage"), message);
        return (stage, None);
    };
    let path = fields.path(name);
    let size = match *name {
        "percentage" => {
            let share = node.as_f64().filter(|percent| *percent > 0.0);
            let share = share
                .and_then(|percent| Share::of_fraction(percent / 100.0))
                .filter(|share| *share <= Share::ALL);
            let share = share.filter(|share| *share > Share::default());
            if share.is_none() {
                errors.push(node.span, &path, "must be a number above 0 and up to 100");
            }
            share.map(Size::Share)
        }
        "count" => {
            let count = node.as_i64().and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0);
            if count.is_none() {
                errors.push(node.span, &path, "must be a whole number, 1 or more");
            }
            count.map(Size::Count)
        }
        "region" => errors.string(node, &path).map(str::to_owned).and_then(|region| {
            use crate::selector::{Condition, Requirement, Selector};
            let made = Requirement::new(REGION, Condition::In(vec![region]))
                .and_then(|requirement| Selector::new(vec![requirement]))
                .and_then(|selector| AgentSelector::new(selector, Vec::new()));
            made.map_err(|error| errors.push(node.span, &path, error.to_string())).ok().map(Size::Matching)
        }),
        _ => selector(node, &path, &["matchLabels", "matchExpressions", "agent_ids"], errors)
            .map(Size::Matching),
    };
    (node, size)
}

fn growth(fields: &Fields<'_>, size: Option<&Size>, errors: &mut Errors) -> Option<(f64, Share)> {
    let node = fields.get("growth")?;
    let path = fields.path("growth");
    let growth = errors.fields(node, &path, &["factor", "to"])?;
    if !matches!(size, Some(Size::Share(_))) {
        errors.push(node.span, &path, "needs `percentage`, from which it grows");
        return None;
    }
    let factor = match growth.get("factor") {
        Some(node) => node.as_f64().filter(|factor| (1.1..=100.0).contains(factor)),
        None => Some(2.0),
    };
    if factor.is_none() {
        errors.push(growth.place("factor"), &growth.path("factor"), "must be a number from 1.1 to 100");
    }
    let to = match growth.get("to") {
        Some(node) => {
            let share = node.as_f64().and_then(|percent| Share::of_fraction(percent / 100.0));
            share.filter(|share| *share <= Share::ALL && *share > Share::default())
        }
        None => Some(Share::ALL),
    };
    if to.is_none() {
        errors.push(growth.place("to"), &growth.path("to"), "must be a number above 0 and up to 100");
    }
    Some((factor?, to?))
}

fn criteria(node: &Node, path: &str, errors: &mut Errors) -> Criteria {
    let known = ["error_rate_threshold", "health_check_pass_rate", "comparison_margin", "min_reports"];
    let Some(fields) = errors.fields(node, path, &known) else { return Criteria::default() };
    let mut share = |name: &str| {
        let node = fields.get(name)?;
        let share = node.as_f64().and_then(Share::of_fraction).filter(|share| *share <= Share::ALL);
        if share.is_none() {
            let percent = node.as_f64().filter(|number| *number > 1.0 && *number <= 100.0);
            let hint = percent.map(|percent| format!("; for {percent} % write {}", percent / 100.0));
            let message = format!("must be a number from 0 to 1{}", hint.unwrap_or_default());
            errors.push(node.span, &fields.path(name), message);
        }
        share
    };
    let error_rate = share("error_rate_threshold");
    let pass_rate = share("health_check_pass_rate");
    let margin = share("comparison_margin");
    if error_rate == Some(Share::ALL) {
        let message = "never fails: every agent may fail; lower it, or remove it";
        errors.push(fields.place("error_rate_threshold"), &fields.path("error_rate_threshold"), message);
    }
    let min_reports = fields.get("min_reports").map(|node| {
        let number = node.as_i64().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        if number.is_none() {
            errors.push(node.span, &fields.path("min_reports"), "must be a whole number, 1 or more");
        }
        number.unwrap_or_default()
    });
    Criteria { error_rate, pass_rate, margin, min_reports: min_reports.unwrap_or_default() }
}

/// Checks that stages grow, and that the last one is for every agent.
fn check_stages(stages: &[Placed<'_>], list: &Node, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (stage, node) in stages {
        if !names.insert(&stage.name) {
            let message = format!("two stages are called {:?}: give each a name of its own", stage.name);
            errors.push(node.span, "spec.stages", message);
        }
    }
    for pair in stages.windows(2) {
        let [(before, _), (stage, node)] = pair else { continue };
        let is_smaller = match (&before.size, &stage.size) {
            (Size::Share(before), Size::Share(share)) => share <= before,
            (Size::Count(before), Size::Count(count)) => count <= before,
            (Size::Share(before), _) => *before == Share::ALL,
            _ => false,
        };
        if is_smaller {
            let message = format!(
                "stage {:?} is not larger than {:?} before it: sizes count the agents of all stages until then, so each must be larger",
                stage.name, before.name
            );
            errors.push(node.span, "spec.stages", message);
        }
    }
    match stages.last() {
        Some((stage, _)) if stage.size == Size::Share(Share::ALL) => {}
        Some((stage, node)) => {
            let message = format!(
                "the last stage, {:?}, does not reach every agent: end with a stage of `percentage: 100`; to reach fewer, narrow them by target_selector",
                stage.name
            );
            errors.push(node.span, "spec.stages", message);
        }
        None if errors.is_empty() => {
            errors.push(
                list.span,
                "spec.stages",
                "is empty: add a stage, the last one with `percentage: 100`",
            );
        }
        None => {}
    }
}

fn failure_policy(node: &Node, errors: &mut Errors) -> (OnFailure, Vec<String>) {
    let path = "spec.failure_policy";
    let Some(fields) = errors.fields(node, path, &["action", "notification"]) else {
        return Default::default();
    };
    let action = match fields.get("action").and_then(|node| errors.string(node, "spec.failure_policy.action"))
    {
        None | Some("rollback") => OnFailure::Rollback,
        Some("pause") => OnFailure::Pause,
        Some(other) => {
            let hint = did_you_mean(other, ["rollback", "pause"]);
            let message = format!("{} is not known: write rollback or pause{hint}", brief(other));
            errors.push(fields.place("action"), "spec.failure_policy.action", message);
            OnFailure::Rollback
        }
    };
    let path = "spec.failure_policy.notification";
    let channels = fields.get("notification").map(|node| errors.string_list(node, path)).unwrap_or_default();
    if channels.len() > MAX_LIST {
        errors.push(
            fields.place("notification"),
            path,
            format!("has more than {MAX_LIST} channels: remove some"),
        );
    }
    (action, channels.into_iter().take(MAX_LIST).map(|channel| channel.value).collect())
}

fn promotion(fields: &Fields<'_>, errors: &mut Errors) -> Option<Promotion> {
    let node = fields.get("promotion")?;
    let path = fields.path("promotion");
    match errors.string(node, &path)? {
        "automatic" => Some(Promotion::Automatic),
        "manual" => Some(Promotion::Manual),
        other => {
            let hint = did_you_mean(other, ["automatic", "manual"]);
            errors.push(
                node.span,
                &path,
                format!("{} is not known: write automatic or manual{hint}", brief(other)),
            );
            None
        }
    }
}

fn duration(fields: &Fields<'_>, name: &str, errors: &mut Errors) -> Option<Duration> {
    let node = fields.get(name)?;
    let text = node.as_scalar().map(|scalar| scalar.text.as_str());
    let duration =
        text.and_then(|text| if text == "0" { Some(Duration::ZERO) } else { parse_duration(text) });
    if duration.is_none() {
        errors.push(
            node.span,
            &fields.path(name),
            "must be a duration such as 30s, 5m, 1h30m or 2d, at most 90d",
        );
    }
    duration
}

fn positive(fields: &Fields<'_>, name: &str, errors: &mut Errors) -> Option<Duration> {
    let duration = duration(fields, name, errors)?;
    if duration.is_zero() {
        errors.push(
            fields.place(name),
            &fields.path(name),
            "must be longer than 0: remove it for the usual one",
        );
    }
    Some(duration).filter(|duration| !duration.is_zero())
}

fn window(node: &Node, path: &str, errors: &mut Errors) -> Option<Window> {
    let fields = errors.fields(node, path, &["days", "from", "to"])?;
    let mut days = 0;
    match fields.get("days") {
        None => days = 0x7f,
        Some(node) => {
            for day in errors.string_list(node, &fields.path("days")) {
                match DAYS.iter().position(|known| *known == day.value) {
                    Some(bit) => days |= 1 << bit,
                    None => {
                        let message =
                            format!("{} is not a day: write {}", brief(&day.value), DAYS.join(", "));
                        errors.push(day.span, &fields.path("days"), message);
                    }
                }
            }
        }
    }
    let mut minute = |name: &str| {
        let text = fields.string(name, errors)?;
        let minute = text.split_once(':').and_then(|(hour, minute)| {
            let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
            (minute < 60).then(|| hour.checked_mul(60)?.checked_add(minute)).flatten()
        });
        let minute = minute.filter(|minute| *minute <= DAY);
        if minute.is_none() {
            errors.push(
                fields.place(name),
                &fields.path(name),
                "must be a time of day in UTC, such as \"22:30\"",
            );
        }
        minute
    };
    let (from, to) = (minute("from")?, minute("to")?);
    if days == 0 && errors.is_empty() {
        errors.push(fields.place("days"), &fields.path("days"), "is empty: remove it for every day");
    }
    Some(Window { days, from: from % DAY, to })
}

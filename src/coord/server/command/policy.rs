//! The policy: read, checked, put in force, taken away.

use super::CommandError;
use crate::coord::policy::Policy;
use crate::coord::server::record::PolicyRecord;
use crate::coord::server::sight::Sight;
use crate::coord::server::{Moment, NodeRecord, Server};
use crate::wire::admin::{Approval, PolicyReport, PolicyText, SetPolicy};

impl Server {
    /// The policy in force.
    pub fn policy(&self) -> PolicyText {
        let record = self.sight.record();
        PolicyText { text: record.map(|record| record.text.clone()), set: record.map(|record| record.set) }
    }

    /// Puts a policy in force, or only says what would come of it.
    ///
    /// # Errors
    /// It does not read, one of its own tests fails, or no node could reach any other and that is not forced.
    pub fn set_policy(&mut self, at: Moment, wanted: &SetPolicy) -> Result<PolicyReport, CommandError> {
        let policy = Policy::parse(&wanted.text).map_err(|error| CommandError::Invalid(error.to_string()))?;
        let record = PolicyRecord { text: wanted.text.clone(), set: at.wall };
        let sight = Sight::new(policy, record, self.subjects());
        if let Err(failures) = sight.compiled().run_tests() {
            let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
            return Err(CommandError::Conflict(format!("{} of the policy's own tests fail: {}", texts.len(), texts.join("; "))));
        }
        if sight.compiled().locks_out() && !wanted.force {
            let text = "with this policy no node could reach any other: everybody would be locked out";
            return Err(CommandError::Conflict(text.to_owned()));
        }
        let name = |id| self.registry.node(id).map(|node| node.name.clone());
        let mut report = PolicyReport {
            in_force: !wanted.check_only,
            nodes: self.registry.nodes().count(),
            isolated: sight.compiled().isolated().into_iter().filter_map(name).collect(),
            unknown_users: self.unknown_users(sight.policy()),
            approves: Vec::new(),
        };
        if !report.in_force && self.sight.record().is_some_and(|record| record.text == wanted.text) {
            return Ok(report);
        }
        let approved = self.approved_by(&sight);
        report.approves = approved.iter().flat_map(|(node, routes)| routes.iter().map(|route| approval(node, *route))).collect();
        if wanted.check_only {
            return Ok(report);
        }
        tracing::info!(nodes = report.nodes, "a policy is put in force");
        self.change_sight(sight);
        self.unsaved_policy = true;
        for (mut node, routes) in approved {
            node.approved.extend(routes);
            self.replace(at, node);
        }
        Ok(report)
    }

    /// Takes the policy away: everything is allowed, and nobody may claim tags.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_policy(&mut self) -> Result<(), CommandError> {
        if self.sight.record().is_none() {
            return Err(CommandError::Conflict("there is no policy: everything is allowed already".to_owned()));
        }
        tracing::info!("the policy is taken away");
        self.change_sight(Sight::default());
        self.unsaved_policy = true;
        Ok(())
    }

    fn unknown_users(&self, policy: &Policy) -> Vec<String> {
        policy.logins().into_iter().filter(|login| self.registry.user_named(login).is_none()).map(str::to_owned).collect()
    }

    /// The nodes that a policy approves routes of, with those routes.
    fn approved_by(&self, sight: &Sight) -> Vec<(NodeRecord, Vec<ipnet::IpNet>)> {
        let approvals = |node: &NodeRecord| {
            let routes = self.auto_approved(sight, node);
            (!routes.is_empty()).then(|| (node.clone(), routes))
        };
        self.registry.nodes().filter_map(approvals).collect()
    }
}

fn approval(node: &NodeRecord, route: ipnet::IpNet) -> Approval {
    Approval { node: node.name.clone(), route }
}

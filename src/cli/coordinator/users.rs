//! `pvemesh coordinator users`.

use super::table::{Table, moment};
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};

/// Users: whoever owns nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Users {
    /// List the users.
    List(Place),
    /// Make a user.
    Create {
        /// Login name.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Delete a user and its join keys; refused while it has nodes.
    Delete {
        /// Login name or number.
        user: String,
        #[command(flatten)]
        place: Place,
    },
}

pub(super) fn run(command: Users, output: &Output) -> Result<(), Failure> {
    match command {
        Users::List(place) => {
            let users = place.ask("list the users", async |admin| admin.users().await)?;
            let mut table = Table::new(&["ID", "NAME", "CREATED"], "no users yet: make one with `pvemesh coordinator users create NAME`");
            for user in &users {
                table.row([user.id.to_string(), user.name.clone(), moment(user.created)]);
            }
            output.result(&users, table);
        }
        Users::Create { name, place } => {
            let user = place.ask("make the user", async |admin| admin.create_user(&name).await)?;
            output.result(&user, format!("user {} is number {}", user.name, user.id));
        }
        Users::Delete { user, place } => {
            const TRIED: &str = "delete the user";
            let found = place.run(TRIED, async |admin| {
                let users = admin.users().await.map_err(|e| failure(TRIED, &e))?;
                let found = users.into_iter().find(|known| known.name == user || known.id.to_string() == user);
                let Some(found) = found else {
                    let next = "see `pvemesh coordinator users list`";
                    return Err(Failure::new(TRIED, format!("there is no user {user}"), next).exit(Exit::Conflict));
                };
                admin.delete_user(found.id).await.map_err(|e| failure(TRIED, &e))?;
                Ok(found)
            })?;
            output.result(&serde_json::json!({ "deleted": found.id }), format!("user {} is deleted", found.name));
        }
    }
    Ok(())
}

//! `pvemesh coordinator users`.

use super::table::{Table, moment};
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::sys::admin::{AdminError, LocalAdmin};
use crate::wire::admin::User;

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
    /// Give a user another login name. Its nodes stay its own.
    Rename {
        /// Login name or number.
        user: String,
        /// The new login name.
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
        Users::Rename { user, name, place } => {
            let renamed = on_user(&place, "rename the user", &user, async |admin, user| admin.rename_user(user.id, &name).await)?;
            output.result(&renamed, format!("user {} is now {}", renamed.id, renamed.name));
        }
        Users::Delete { user, place } => {
            let found = on_user(&place, "delete the user", &user, async |admin, user| admin.delete_user(user.id).await.map(|()| user))?;
            output.result(&serde_json::json!({ "deleted": found.id }), format!("user {} is deleted", found.name));
        }
    }
    Ok(())
}

/// Finds a user by name or number and does something with it.
fn on_user<T>(
    place: &Place,
    tried: &str,
    which: &str,
    act: impl AsyncFnOnce(&LocalAdmin, User) -> Result<T, AdminError>,
) -> Result<T, Failure> {
    place.run(tried, async |admin| {
        let users = admin.users().await.map_err(|e| failure(tried, &e))?;
        let Some(user) = users.into_iter().find(|known| known.name == which || known.id.to_string() == which) else {
            let next = "see `pvemesh coordinator users list`";
            return Err(Failure::new(tried, format!("there is no user {which}"), next).exit(Exit::Conflict));
        };
        act(admin, user).await.map_err(|e| failure(tried, &e))
    })
}

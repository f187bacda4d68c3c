"""MLflow's two users, before its server starts: admin, and medssl, as whom sweeps write.

Their passwords are those of the Secret, now and whenever the pod starts anew, so a password is
changed by changing the Secret. The server itself never sees the admin's.
"""

import os

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

store = SqlAlchemyStore()
store.init_db(read_auth_config().database_uri)  # waits for the database, and makes its tables
for name, password, admin in (
    ("admin", os.environ["ADMIN_PASSWORD"], True),
    ("medssl", os.environ["SWEEP_PASSWORD"], False),
):
    if not store.has_user(name):
        store.create_user(name, password, is_admin=admin)
        print(f"{name}: made")
    elif not store.authenticate_user(name, password):
        store.update_user(name, password=password)
        print(f"{name}: has a new password")
    else:
        print(f"{name}: is there")

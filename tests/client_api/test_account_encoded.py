"""The same requests, with every question to the user component carried as bytes, as between processes."""

from __future__ import annotations

from tests.client_api import test_account, test_login, test_register


class Login(test_login.Login):
    encoded = True


class LastSeen(test_login.LastSeen):
    encoded = True


class Register(test_register.Open):
    encoded = True


class WithToken(test_register.WithToken):
    encoded = True


class Devices(test_account.Devices):
    encoded = True


class Profiles(test_account.Profiles):
    encoded = True


class Data(test_account.Data):
    encoded = True


class PushRules(test_account.PushRules):
    encoded = True


class Reading(test_account.Reading):
    encoded = True


class Pushers(test_account.Pushers):
    encoded = True


class OpenId(test_account.OpenId):
    encoded = True


class Administration(test_account.Administration):
    encoded = True

package netlab

import (
	"errors"
	"testing"
)

// TestSet: the setting of one side changes, and neither the other's nor the host's.
func TestSet(t *testing.T) {
	before := hostSettings(t)
	lab := newLab(t, Options{})
	one := Sysctl{"net.ipv4.tcp_fin_timeout", "7"}
	if err := lab.Set(lab.Server(), one); err != nil {
		t.Fatal(err)
	}
	if got, err := lab.Server().Sysctl(one.Key); err != nil || got != "7" {
		t.Errorf("%s = %q, %v", one.Key, got, err)
	}
	if got, err := lab.Client().Sysctl(one.Key); err != nil || got == "7" {
		t.Errorf("the client's %s = %q, %v", one.Key, got, err)
	}
	if err := lab.Set(lab.Server(), Sysctl{"net.ipv4.no_such_setting", "1"}); !errors.Is(err, ErrNoSetting) {
		t.Errorf("an unknown setting: %v", err)
	}
	if err := lab.Set(lab.Server(), Sysctl{"kernel.hostname", "x"}); err == nil {
		t.Error("a setting that is not of a namespace was taken")
	}
	other := newLab(t, Options{Kind: Host})
	for _, ns := range []*Namespace{other.Client(), nil} {
		if err := lab.Set(ns, one); !errors.Is(err, ErrHostSetting) {
			t.Errorf("a namespace of another lab: %v", err)
		}
	}
	if err := other.Set(other.Client(), one); !errors.Is(err, ErrHostSetting) {
		t.Errorf("the host: %v", err)
	}
	compareSettings(t, before, hostSettings(t))
}

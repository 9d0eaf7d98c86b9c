package vmtest

import (
	"slices"
	"strings"
	"testing"
)

// TestCandidates has names as apt-cache lists them, out of order.
func TestCandidates(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64-unsigned",
		"linux-image-6.1.0-56-cloud-amd64-unsigned",
		"linux-image-6.1.0-56-cloud-amd64",
		"linux-image-6.1.0-48-cloud-amd64",
		"linux-image-6.1-cloud-amd64",
		"linux-image-cloud-amd64",
		"linux-headers-6.1.0-99-cloud-amd64",
		"linux-image-6.1.0-99-rt-amd64",
		"linux-image-6.12.115+deb13-cloud-amd64-unsigned",
		"linux-image-6.12.115+deb13.1-cloud-amd64-unsigned",
		"linux-binary-unsigned-7.2.9+deb14-cloud-amd64",
		"linux-modules-7.2.9+deb14-cloud-amd64",
		"linux-binary-unsigned-7.2.13+deb14-cloud-amd64",
		"linux-binary-7.2.13+deb14-cloud-amd64",
		"linux-modules-7.2.13+deb14-cloud-amd64",
		"linux-image-7.2.13+deb14-cloud-amd64",
		"linux-binary-7.2.14+deb14-cloud-amd64",
	}
	for _, tt := range []struct {
		series string
		want   []string
	}{
		{"6.1.", []string{
			"linux-image-6.1.0-56-cloud-amd64-unsigned",
			"linux-image-6.1.0-56-cloud-amd64",
			"linux-image-6.1.0-48-cloud-amd64",
			"linux-image-6.1.0-9-cloud-amd64-unsigned",
		}},
		{"6.12.", []string{
			"linux-image-6.12.115+deb13.1-cloud-amd64-unsigned",
			"linux-image-6.12.115+deb13-cloud-amd64-unsigned",
		}},
		{"7.", []string{ // 7.2.14 has no modules
			"linux-binary-unsigned-7.2.13+deb14-cloud-amd64 linux-modules-7.2.13+deb14-cloud-amd64",
			"linux-binary-7.2.13+deb14-cloud-amd64 linux-modules-7.2.13+deb14-cloud-amd64",
			"linux-binary-unsigned-7.2.9+deb14-cloud-amd64 linux-modules-7.2.9+deb14-cloud-amd64",
		}},
		{"5.10.", nil},
	} {
		t.Run(tt.series, func(t *testing.T) {
			var got []string
			for _, c := range candidates(names, tt.series) {
				got = append(got, strings.Join(c.packages, " "))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
	if c := candidates(names, ""); len(c) == 0 || c[0].release != "7.2.13+deb14-cloud-amd64" {
		t.Errorf("the newest of all is %v", c)
	}
}

func TestParseMirrors(t *testing.T) {
	debian := mirrors{"http://deb.debian.org/debian", "http://deb.debian.org/debian-security"}
	for _, tt := range []struct {
		name, sources string
		want          mirrors
	}{
		{"none", "", debian},
		{"one line", "# deb http://no.example/debian x main\n" +
			"deb [arch=amd64 signed-by=/k] https://one.example/debian/ trixie main\n" +
			"deb http://two.example/debian trixie main\n" +
			"deb http://sec.example/debian-security trixie-security main\n",
			mirrors{"https://one.example/debian", "http://sec.example/debian-security"}},
		{"deb822", "Types: deb\n# http://snapshot.example/archive/debian/2025\nURIs: http://one.example/debian\nSuites: bookworm\n\n" +
			"Types: deb\nURIs: http://one.example/debian-security\nSuites: bookworm-security\n",
			mirrors{"http://one.example/debian", "http://one.example/debian-security"}},
		{"another distribution", "deb http://archive.example/ubuntu noble main\n", debian},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseMirrors(tt.sources); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestFirstError(t *testing.T) {
	for stderr, want := range map[string]string{
		"W: hm\nE: Failed to fetch http://m/x.deb  404  Not Found\nE: more\n": "Failed to fetch http://m/x.deb  404  Not Found",
		"no such option\n": "no such option",
	} {
		if got := firstError(stderr); got != want {
			t.Errorf("%q: got %q, want %q", stderr, got, want)
		}
	}
}

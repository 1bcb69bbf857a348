package azure

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// azVersion is the version of azure-cli that TANDEM_AZURE_INSTALL=1 installs.
const azVersion = "2.91.0"

var (
	theRig *rig
	// report has a line for each case: what it made, and what it asserted.
	report struct {
		sync.Mutex
		lines []string
	}
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "azure:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return 0, err
	}
	az, err := findAz(root)
	if err != nil {
		return 0, err
	}
	if az == "" {
		fmt.Printf("azure: skipped: az is not on PATH; TANDEM_AZURE_INSTALL=1 installs azure-cli %s below out/, 730 MB\n", azVersion)
		return 0, nil
	}
	folder, err := os.MkdirTemp("", "tandem-azure")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	if theRig, err = newRig(root, folder, az); err != nil {
		return 0, err
	}
	defer theRig.Close()
	code := m.Run()
	fmt.Println("azure: what each case made and asserted:")
	for _, line := range report.lines {
		fmt.Println("  " + line)
	}
	return code, nil
}

// findAz returns the path of az: the one that an earlier run installed, or the one on
// PATH, or a new installation if TANDEM_AZURE_INSTALL is set.
func findAz(root string) (string, error) {
	environment := filepath.Join(root, "out", "azure-cli-"+azVersion)
	az := filepath.Join(environment, "bin", "az")
	if _, err := os.Stat(filepath.Join(environment, "complete")); err == nil {
		return az, nil
	}
	if found, err := exec.LookPath("az"); err == nil {
		return found, nil
	}
	if os.Getenv("TANDEM_AZURE_INSTALL") == "" {
		return "", nil
	}
	fmt.Printf("azure: installing azure-cli %s in %s, once\n", azVersion, environment)
	for _, command := range [][]string{
		{"python3", "-m", "venv", "--clear", environment},
		{filepath.Join(environment, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "azure-cli==" + azVersion},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	return az, os.WriteFile(filepath.Join(environment, "complete"), nil, 0o600)
}

// rig is the Resource Manager, and the environment in which scripts talk to it.
type rig struct {
	*arm.Server
	root        string // of the repository
	folder      string
	records     string // what the kubectl and curl of testdata record
	environment []string
}

func newRig(root, folder, az string) (*rig, error) {
	server, err := arm.Start(folder, arm.Options{
		Kubeconfig: []byte(entraKubeconfig),
		Log:        func(format string, args ...any) { fmt.Printf("azure: "+format+"\n", args...) },
	})
	if err != nil {
		return nil, err
	}
	r := &rig{Server: server, root: root, folder: folder, records: filepath.Join(folder, "records")}
	home := filepath.Join(folder, "home")
	stubs, err := filepath.Abs("testdata/bin")
	if err != nil {
		return nil, err
	}
	kubectl, _ := exec.LookPath("kubectl") // the stub does without
	path := strings.Join([]string{stubs, filepath.Dir(az), filepath.Join(root, "bin"), os.Getenv("PATH")}, string(os.PathListSeparator))
	settings := filepath.Join(folder, "aks.env")
	r.environment = append(server.Environment(),
		"PATH="+path, "HOME="+home, "KUBECONFIG="+filepath.Join(home, "kubeconfig"), "RECORDS="+r.records, "REAL_KUBECTL="+kubectl,
		"AZURE_CORE_NO_COLOR=yes", "AKS_ENV="+settings, "LANG=C.UTF-8", "TMPDIR="+folder, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	)
	for _, folder := range []string{home, r.records} {
		if err := os.MkdirAll(folder, 0o750); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(settings, nil, 0o600); err != nil {
		return nil, err
	}
	if login := r.shell(nil, server.Login()); login.err != nil {
		return nil, fmt.Errorf("log in: %w\n%s", login.err, login.stderr)
	}
	server.Reset()
	return r, nil
}

// result is what a command printed, and how it ended.
type result struct {
	stdout, stderr string
	err            error
}

// shell runs a script for bash in the repository.
func (r *rig) shell(environment []string, script string) result {
	return r.run(exec.Command("bash", "-c", script), environment)
}

func (r *rig) run(cmd *exec.Cmd, environment []string) result {
	var out, errOut bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.root, &out, &errOut
	cmd.Env = append(append([]string{}, r.environment...), environment...)
	err := cmd.Run()
	return result{out.String(), errOut.String(), err}
}

// script runs a script of scripts/aks with settings NAME=VALUE and arguments.
func (r *rig) script(name string, settings []string, arguments ...string) result {
	return r.run(exec.Command(filepath.Join(r.root, "scripts", "aks", name), arguments...), settings)
}

// killedScript is script, but all of its processes are killed after the first change.
// It reports whether the script changed anything.
func (r *rig) killedScript(name string, arguments ...string) (result, bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.root, "scripts", "aks", name), arguments...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	changed := false
	r.OnChange(func(arm.Request) { cancel() })
	defer r.OnChange(nil)
	got := r.run(cmd, nil)
	changed = ctx.Err() != nil
	return got, changed
}

// start empties the Resource Manager and the records.
func (r *rig) start(t *testing.T) {
	t.Helper()
	r.Reset()
	r.forget(t)
}

// forget empties the records.
func (r *rig) forget(t *testing.T) {
	t.Helper()
	require.NoError(t, os.RemoveAll(r.records))
	require.NoError(t, os.MkdirAll(r.records, 0o750))
}

// recorded returns a file of the records, or "".
func (r *rig) recorded(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(r.records, name))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	return string(content)
}

// done adds a line to the report.
func done(t *testing.T, started time.Time, made, asserted string) {
	t.Helper()
	report.Lock()
	defer report.Unlock()
	state := "ok"
	if t.Failed() {
		state = "FAILED"
	}
	report.lines = append(report.lines, fmt.Sprintf("%-34s %-6s %4.0fs | %s | %s", strings.TrimPrefix(t.Name(), "Test"), state, time.Since(started).Seconds(), made, asserted))
}

// ids matches what differs between equal runs.
var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// summary returns one line for each change.
func summary(changes []arm.Request) string {
	var lines strings.Builder
	for _, c := range changes {
		fmt.Fprintln(&lines, ids.ReplaceAllString(c.String(), "ID"))
	}
	return lines.String()
}

// entraKubeconfig is what az aks get-credentials receives from a cluster with Entra.
const entraKubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: tandem
  cluster: {server: "https://tandem-0000.hcp.eastus2.azmk8s.io:443"}
contexts:
- name: tandem
  context: {cluster: tandem, user: clusterUser_tandem_tandem}
current-context: tandem
users:
- name: clusterUser_tandem_tandem
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: kubelogin
      args: [get-token, --environment, AzurePublicCloud, --server-id, 6dae42f8-4368-4678-94ff-3960e28e3630, --client-id, 80faf920-1908-4b52-b5ef-a8e7bedfc67a, --tenant-id, 22222222-2222-4222-8222-222222222222, --login, devicecode]
`

using System.IO.Compression;

namespace SolRt.Sample;

/// <summary>A conversation with a bundle, whose budget a slider or the governor moves while text streams.</summary>
public partial class MainPage : ContentPage
{
    private readonly List<SolMessage> _messages = new();
    private readonly IDispatcherTimer _clock;
    private SolModel? _model;
    private SolSession? _session;
    private SolGovernor? _governor;
    private CancellationTokenSource? _running;
    private double? _rate;

    public MainPage()
    {
        InitializeComponent();
        _clock = Dispatcher.CreateTimer();
        _clock.Interval = TimeSpan.FromSeconds(1);
        _clock.Tick += (_, _) => Govern();
        Loaded += async (_, _) =>
        {
            if (Directory.Exists(BundleFolder))
            {
                await Load();
            }
        };
    }

    // The weights file is mapped into memory, so the bundle lies as files in the app's own folder.
    private static string BundleFolder => Path.Combine(FileSystem.AppDataDirectory, "bundle");

    private static SolModelOptions Options => new() { CostsFolder = Path.Combine(FileSystem.AppDataDirectory, "costs") };

    private async void OnOpen(object? sender, EventArgs e)
    {
        if (await FilePicker.Default.PickAsync() is not FileResult file)
        {
            return;
        }
        OpenButton.IsEnabled = false;
        Status.Text = "Unpacking …";
        try
        {
            Close();
            await Task.Run(async () =>
            {
                if (Directory.Exists(BundleFolder))
                {
                    Directory.Delete(BundleFolder, recursive: true);
                }
                using var zip = await file.OpenReadAsync();
                ZipFile.ExtractToDirectory(zip, BundleFolder);
            });
            await Load();
        }
        catch (Exception error) when (error is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            Status.Text = error.Message;
        }
        OpenButton.IsEnabled = true;
    }

    private async Task Load()
    {
        try
        {
            _model = await SolModel.LoadAsync(BundleFolder, Options);
            _session = _model.CreateSession();
            _messages.Clear();
            var info = _model.Info;
            Status.Text = $"{info.Name}: {info.MappedBytes / 1e6:0} MB of weights";
            GoButton.IsEnabled = true;
        }
        catch (SolException error)
        {
            Status.Text = error.Message;
        }
    }

    private void Close()
    {
        GoButton.IsEnabled = false;
        _session?.Dispose();  // ends a running generation
        _model?.Dispose();
        _session = null;
        _model = null;
    }

    private async void OnGo(object? sender, EventArgs e)
    {
        if (_running is not null)
        {
            _running.Cancel();
            return;
        }
        if (_session is not SolSession session || string.IsNullOrWhiteSpace(Question.Text))
        {
            return;
        }
        _messages.Add(new SolMessage("user", Question.Text));
        Question.Text = "";
        GoButton.Text = "Stop";
        Answer.FormattedText = new FormattedString();
        var text = new System.Text.StringBuilder();
        using var running = _running = new CancellationTokenSource();
        try
        {
            var options = new SolGenerateOptions { MaxNewTokens = 512, ReuseCache = true, Budget = Dial.Value };
            await foreach (var token in session.ChatAsync(_messages, options, running.Token))
            {
                text.Append(token.Text);
                Answer.FormattedText.Spans.Add(new Span { Text = token.Text, BackgroundColor = Colors.Orange.WithAlpha((float)(0.6 * token.RelativeCost)) });
                _rate = session.Result.TokensPerSecond;
                Status.Text = $"{_rate:0.0} tokens/s, budget {token.AchievedBudget:0.00} of {token.RequestedBudget:0.00}";
                await Scroll.ScrollToAsync(0, Answer.Height, animated: false);
            }
        }
        catch (OperationCanceledException)
        {
            Status.Text += ", stopped";
        }
        catch (ObjectDisposedException)
        {
            // Another bundle was opened.
        }
        catch (SolException error)
        {
            Status.Text = error.Message;
        }
        _messages.Add(new SolMessage("assistant", text.ToString()));
        _running = null;
        _rate = null;
        GoButton.Text = "Go";
    }

    private void OnDial(object? sender, ValueChangedEventArgs e)
    {
        try
        {
            _session?.SetBudget(e.NewValue);
        }
        catch (SolUsageException)
        {
            // Nothing is generating: the next generation begins with the dial's budget.
        }
    }

    private void OnGovernor(object? sender, ToggledEventArgs e)
    {
        _governor = e.Value ? new SolGovernor(Dial.Minimum, Dial.Maximum) : null;
        Dial.IsEnabled = !e.Value;
        if (e.Value)
        {
            _clock.Start();
        }
        else
        {
            _clock.Stop();
        }
    }

    private void Govern()
    {
        if (_governor is not null)
        {
            Dial.Value = _governor.Step(DeviceState.Read(_rate));  // moves the session's budget through OnDial
        }
    }
}
